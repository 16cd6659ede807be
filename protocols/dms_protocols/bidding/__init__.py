"""Bids: how a provider decides, signs and prices, and how a requester checks."""
