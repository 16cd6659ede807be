"""Metrics, log lines and memory of a running peer."""
