"""Marks in rows and batches, the same for both loops."""

STUDENT_ROWS = 1
"""The mark in a batch's "source" of rows that a student wrote; 0 is a teacher, or anyone."""

NO_LABEL = -100
"""The label of tokens that are not learned."""

NO_ROW = -1
"""The number of a row that only fills a batch: it has no lists."""
