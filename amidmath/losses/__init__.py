"""Losses of a student against a teacher."""
