"""The swarm: dialling, accepting, which peers may connect, and which are connected."""
