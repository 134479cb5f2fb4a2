"""GGUF on llama.cpp."""

SHARES: tuple[str, ...] = ()  # other folders of runtimes/backends/ that its bundles carry
