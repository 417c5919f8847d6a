"""Dataset, training, evaluation, export and publishing."""
