"""The Kademlia DHT: finds the providers of a capability class."""
