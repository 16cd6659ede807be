"""The requester: finds free capacity, collects bids, and takes all of an ensemble or none of it.

Nothing here imports libp2p: it runs on a `PeerNetwork`.
"""
