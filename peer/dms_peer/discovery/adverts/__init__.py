"""Adverts of free capacity, and broadcasts: what is told, heard, exchanged and answered."""
