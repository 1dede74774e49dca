"""A teacher's most probable tokens on disk: written once, read by every run."""
