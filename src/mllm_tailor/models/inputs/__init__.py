"""How each model family turns pictures, videos and recordings into tensors."""
