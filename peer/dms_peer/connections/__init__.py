"""Connections to peers: dialled when they are needed, shared by all who need them, closed when nobody does."""

from .limits import ConnectionLimits
from .pool import ConnectionPool, ConnectionStatistics, open_connections

__all__ = ["ConnectionLimits", "ConnectionPool", "ConnectionStatistics", "open_connections"]
