"""Ready distillation loops built on amidmath."""
