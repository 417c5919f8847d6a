"""Files for devices: GGUF through ggml's own kernels, and the proof that each is as good as the served model."""
