"""Keys: the identity of a peer, key files, envelopes that a key signs, the key of a private network."""
