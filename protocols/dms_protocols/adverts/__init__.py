"""Adverts of free capacity and their exchange, and broadcast requests for bids."""
