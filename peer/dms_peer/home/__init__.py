"""The peer's own folder, and the host that it opens."""
