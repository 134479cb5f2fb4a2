"""The demo checkpoint and the scripts that made it."""
