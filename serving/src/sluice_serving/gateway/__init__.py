"""The gateway: the only way into the models."""
