"""Streams: opening them, serving protocols on them, and reading and writing that cancellation leaves whole."""
