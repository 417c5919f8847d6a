"""The local OpenAI-compatible API: on 127.0.0.1 only, a key required, and no way to open a connection out."""
