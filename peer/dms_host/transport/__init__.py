"""From a socket to a secured, multiplexed connection: dialling, TCP, private networks, upgrading."""
