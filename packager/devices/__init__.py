"""Device and budget files, and what this machine is."""
