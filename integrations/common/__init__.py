"""Everything that the distillation loops of every framework share."""
