"""The distillation loop for JAX: Flax NNX students on a device mesh."""
