"""One-place mutations of the source, and the tests that should notice them."""
