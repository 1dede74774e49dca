"""Formulas of a token or of a row, each written once over a namespace."""
