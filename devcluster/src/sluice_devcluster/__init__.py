"""A real local Kubernetes for development, the demo and the tests."""
