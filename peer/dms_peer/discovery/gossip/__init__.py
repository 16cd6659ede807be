"""Gossip, on the hardened pubsub of the library: adverts and broadcasts."""
