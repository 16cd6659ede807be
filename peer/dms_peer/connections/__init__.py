"""Connections to peers: dialled when they are needed, shared by all who need them, closed when nobody does."""

from .limits import ConnectionLimits
from .pool import ConnectionStatistics, PeerConnections, open_connections

__all__ = ["ConnectionLimits", "ConnectionStatistics", "PeerConnections", "open_connections"]
