"""Feeds hostile bytes to everything here that reads bytes of others."""
