"""The engine: llama.cpp in a child process of its own, cut off from the network before a model is loaded."""
