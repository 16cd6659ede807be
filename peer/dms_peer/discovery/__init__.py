"""Finding peers with capacity: known peers, adverts, mDNS, Kademlia, and a broadcast as last resort."""
