"""What the torch distillation loop is made of."""
