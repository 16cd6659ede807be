"""Connections to peers: dialled when needed, shared by all callers, closed when idle."""

from .limits import ConnectionLimits
from .pool import ConnectionPool, ConnectionStatistics, open_connections

__all__ = ["ConnectionLimits", "ConnectionPool", "ConnectionStatistics", "open_connections"]
