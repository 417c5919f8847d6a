"""The gateway beside LiteLLM's proxy, nginx and no proxy at all."""
