"""The RayJob's entry point: train, evaluate, gate, export, prove parity, write the manifest. Each stage leaves a
marker, so that a job that is started again goes on where the last one stopped."""
