"""Adverts of free capacity, their exchange, and broadcast requests."""
