"""Gossip, on the library's pubsub with safe replacements: adverts and broadcasts."""
