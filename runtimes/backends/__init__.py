"""One module per format, each with `open_backend(path, window, options) -> Backend`."""
