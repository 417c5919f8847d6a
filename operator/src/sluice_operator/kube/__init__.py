"""The Kubernetes API over aiohttp: credentials, a small client, the resources in use."""
