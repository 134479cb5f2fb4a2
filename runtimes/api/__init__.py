"""One small file for each HTTP dialect, which only translates: a body to an ask, results back."""
