"""Ids to text: the runtime, its cache, sampling and lookup."""
