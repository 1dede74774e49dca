"""Several processes that train together, and the mesh of their devices."""
