"""Streams: opening them, serving protocols on them, reading and writing them with safe cancellation."""
