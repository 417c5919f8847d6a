"""InferencePool: one stable version, at most one candidate, and the evidence by which one becomes the other."""
