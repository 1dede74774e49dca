"""How a loss is computed for each pair of kinds of inputs."""
