"""JAX: how closed forms run on its arrays and are differentiated."""
