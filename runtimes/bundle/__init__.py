"""Opening a bundle and choosing among its variants."""
