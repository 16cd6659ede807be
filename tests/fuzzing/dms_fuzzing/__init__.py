"""Feeds hostile bytes to all code that reads bytes of others."""
