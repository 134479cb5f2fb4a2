"""What a variant will need on a device: memory and time."""
