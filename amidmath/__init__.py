"""Mathematics of knowledge distillation with the α-mixture assistant distribution."""
