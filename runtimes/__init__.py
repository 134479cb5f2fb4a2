"""starpack's device side: opens a bundle, generates and infills with the window exact."""
