"""What went wrong, for the person at the device: what was being done, what is wrong, what to do next."""


class EdgeError(Exception):
    """Base of all errors that are shown as one line."""


class ConfigurationError(EdgeError):
    """The home folder or a setting is missing or wrong."""


class FetchError(EdgeError):
    """Something could not be fetched from the repository. The installed model keeps running."""


class TrustError(EdgeError):
    """What the repository offers must not be believed. The installed model keeps running."""


class StorageFullError(EdgeError):
    """The device has not enough disk space. Nothing half-written stays."""


class UnhealthyError(EdgeError):
    """A new model file did not pass its health check and was not taken into use."""


class NoModelError(EdgeError):
    """No model is installed yet."""

    def __init__(self) -> None:
        super().__init__("no model is installed on this device yet; fetch one with `sluice-edge sync`")


class EngineError(EdgeError):
    """The engine could not start, or died, or refused a request."""


class FenceError(EdgeError):
    """The process could not be cut off from the network, so it was not let near a prompt."""
