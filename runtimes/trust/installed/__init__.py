"""What `install` makes of a bundle: versions side by side, and how each is checked."""
