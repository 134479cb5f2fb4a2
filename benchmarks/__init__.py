"""Measurements against peers, one command each; LOG.md keeps what was found."""
