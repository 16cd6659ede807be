"""Bids: how a provider decides, prices and signs them, and how a requester checks them."""
