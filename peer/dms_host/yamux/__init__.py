"""Yamux: connections and their streams."""
