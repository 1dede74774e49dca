"""The losses in others' trainers: Optax, Tunix, TRL's DistillationTrainer."""
