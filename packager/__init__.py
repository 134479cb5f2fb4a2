"""starpack's build side: from a StarCoder2 checkpoint to a bundle."""
