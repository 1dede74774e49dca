"""The distillation loop for torch, on TRL's SFTTrainer."""
