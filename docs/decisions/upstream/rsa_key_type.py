"""`pub_key_to_protobuf` leaves out the type of an RSA key."""

from libp2p.crypto.rsa import create_new_key_pair
from libp2p.peer.envelope import pub_key_to_protobuf

encoded = pub_key_to_protobuf(create_new_key_pair().public_key).SerializeToString()
print("the encoding begins with the required type (08 00):", encoded[:2] == b"\x08\x00")
