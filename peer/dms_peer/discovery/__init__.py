"""Where peers with capacity are found: known peers, adverts, mDNS, Kademlia, and a broadcast as last resort."""
