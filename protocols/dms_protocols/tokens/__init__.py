"""Tokens: the grants of a peer to other peers, as Biscuits."""
