"""Data policies: the dataset's sequences, generated ones, or either."""
