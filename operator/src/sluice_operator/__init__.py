"""The Kubernetes operator: observe, plan, apply."""
