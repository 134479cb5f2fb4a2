"""GGUF on llama.cpp."""
