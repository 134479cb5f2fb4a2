"""The `starpack` command line: flags, what is printed, exit codes."""
