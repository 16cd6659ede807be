"""Circuit relay v2: a relay for others, and places at relays."""
