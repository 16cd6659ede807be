"""The owner's policies: Python entry points, executables and HTTP endpoints (docs/policies.md).

All of them get the same question and give the same answer (`documents`). None can block the peer: code of the owner
runs in separate processes, which end with the peer even if the peer is killed.
"""
