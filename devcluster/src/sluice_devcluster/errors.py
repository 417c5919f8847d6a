"""The one error of this package, so that every command can end in one clear line."""


class DevClusterError(Exception):
    """The local cluster cannot do what was asked. The message says what is wrong and what to do about it."""
