"""Identify: what peers say of themselves, and push when it changes."""
