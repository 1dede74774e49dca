"""The settings of JAX's scripts, as their command lines take them."""
