"""The puller: the only part that reaches the network, and it never sees a prompt."""
