"""The settings of torch's scripts, as their command lines take them."""
