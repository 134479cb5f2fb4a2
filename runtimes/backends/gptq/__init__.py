"""GPTQ on torch."""
