"""The swarm: dialing, accepting, who may connect, and who is connected."""
