"""The one error that means: the input is wrong, and trying again would not change it."""


class InvalidInputError(Exception):
    """A file, a field or a reference is wrong; the message names it and says what to do."""
