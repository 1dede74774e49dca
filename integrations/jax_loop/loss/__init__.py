"""The loss of a batch from the states of teacher and student."""
