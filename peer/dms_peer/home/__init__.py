"""The files that a peer keeps in its home directory, and the host that it opens with them."""
