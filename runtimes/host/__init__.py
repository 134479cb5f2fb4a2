"""What this machine has: processors, memory, limits."""
