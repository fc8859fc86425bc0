"""Read checkpoints: headers, indexes, JSON within limits, tensors."""
