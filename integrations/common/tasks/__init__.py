"""Tasks: prompts with reference answers, metrics, and the scores of a model's answers."""
