"""The serving gateway and the Ray Serve + vLLM application."""
