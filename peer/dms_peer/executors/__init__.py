"""Executors: what runs jobs on this machine. `docker` and `command` are here; entry points add others."""
