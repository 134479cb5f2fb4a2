"""GGUF on llama.cpp."""

SHARES: tuple[str, ...] = ()  # other folders of runtimes/backends/ that its bundles carry

# Plain attention keeps the scores of a chunk: for the 3B's shape, measured, 122 MiB, and 256 MiB
# for chunks of 512, which are no faster.
PLAIN_CHUNK_TOKENS = 256


def call_tokens(chunk_tokens: int, context_tokens: int, *, fused: bool) -> int:
    """Most ids of one call, of the `chunk_tokens` that are asked for; fused: as to attention."""
    most = chunk_tokens if fused else PLAIN_CHUNK_TOKENS
    return min(chunk_tokens, context_tokens, most)
