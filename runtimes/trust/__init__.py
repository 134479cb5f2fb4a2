"""What runs before the hashes of a bundle have been checked: standard library only."""
