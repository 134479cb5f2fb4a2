"""GPTQ on torch."""

SHARES = ("own_cache",)  # other folders of runtimes/backends/ that its bundles carry
