"""What every room shares: errors, records, files that are complete or absent."""
