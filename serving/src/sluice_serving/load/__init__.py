"""`sluice-load`: an open-loop load generator that speaks the OpenAI API."""

from sluice_serving.load.main import main

__all__ = ["main"]
