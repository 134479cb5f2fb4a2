"""What every room shares: errors, records, files that are whole or absent."""
