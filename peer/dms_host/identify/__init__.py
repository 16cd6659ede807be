"""Identify: what peers report about themselves, and a push when it changes."""
