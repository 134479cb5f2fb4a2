"""For formats whose cache of keys and values is ours and not an engine's."""
