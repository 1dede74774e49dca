"""The one error that says: something you gave does not fit, and here is what to do."""


class InputError(ValueError):
    """An argument, model or dataset that cannot be used; the message says what would be right."""
