"""CuPy: how closed forms run on its arrays."""
