"""The owner's own policies: a Python entry point, an executable, or an HTTP endpoint (docs/policies.md).

All of them are asked in the same words (`documents`) and none can hold the peer up: code that is not ours runs in
processes of its own, which end with the peer whatever becomes of it.
"""
