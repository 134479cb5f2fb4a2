"""A selection to report.html."""
