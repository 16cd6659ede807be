"""Circuit relay v2: a relay for others, and reservations at relays."""
