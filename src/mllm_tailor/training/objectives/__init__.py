"""Training objectives: the loss of a micro-batch and the weight it is averaged by."""
