"""A selection to a bundle folder, and what is done with a packed bundle."""
