"""GPTQ: quantisation."""
