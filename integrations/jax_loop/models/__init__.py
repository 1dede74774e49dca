"""Models: their files, their families, their states and their answers."""
