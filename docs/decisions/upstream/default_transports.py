"""`new_host` offers plaintext, secio and Mplex by default."""

from libp2p import new_host

upgrader = new_host().get_network().upgrader
print(list(upgrader.security_multistream.transports))
print(list(upgrader.muxer_multistream.transports))
