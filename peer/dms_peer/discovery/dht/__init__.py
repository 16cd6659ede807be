"""The Kademlia DHT: who provides a capability class."""
