"""A run from its arguments: loading, the header, the estimate, the records."""
