"""Arithmetic on arrays: no files, no checkpoints."""
