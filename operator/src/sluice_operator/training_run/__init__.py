"""TrainingRun: from a dataset to a ModelVersion, through one RayJob an attempt."""
