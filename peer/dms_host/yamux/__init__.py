"""Yamux: a connection and its streams, which know each other."""
