"""A Hugging Face folder to a checkpoint, its tensors and the float32 reference."""
