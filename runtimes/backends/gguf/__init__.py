"""GGUF on llama.cpp."""

SHARES: tuple[str, ...] = ()  # other folders of runtimes/backends/ that its bundles carry

# Plain attention keeps the scores of a chunk: for the 3B's shape, measured, 122 MiB, and 256 MiB
# for chunks of 512, which are no faster.
PLAIN_CHUNK_TOKENS = 256
