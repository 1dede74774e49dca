"""What the distillation loops of every framework have in common."""
