"""Why something was not published."""


class PublishError(Exception):
    """Nothing was published; the message says what is wrong and what to do."""
