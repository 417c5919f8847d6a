"""Figures, each measured side by side with a peer: see README.md."""
