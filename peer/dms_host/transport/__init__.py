"""From a socket to a secured, multiplexed connection: dialing, TCP, private networks, upgrading."""
