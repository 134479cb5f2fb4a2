"""Source code to token sequences and importance matrices."""
