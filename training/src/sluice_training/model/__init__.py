"""The model itself: a Llama in plain PyTorch with Hugging Face's names, its tokenizer, and its files."""
