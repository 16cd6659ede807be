"""Typed messages with the DMS's field names, one file per protocol."""
