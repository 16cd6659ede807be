"""Keys: the identity of a peer, key files, signed envelopes, the key of a private network."""
