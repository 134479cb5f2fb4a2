"""The llama.cpp wheel and the other wheels of a bundle."""
