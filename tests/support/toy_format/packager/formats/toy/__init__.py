"""The checkpoint's own numbers in float32: the smallest format that there can be."""
