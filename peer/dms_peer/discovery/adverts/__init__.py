"""Adverts of free capacity, and broadcasts: publishing, receiving, exchanging and answering them."""
