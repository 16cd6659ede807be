"""Tokens: what a peer grants to others, as Biscuits."""
