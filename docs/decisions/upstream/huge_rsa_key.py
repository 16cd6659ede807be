"""A huge RSA key keeps the processor busy for seconds."""

import random
import time

from Crypto.Util.asn1 import DerSequence
from libp2p.crypto.pb import crypto_pb2
from libp2p.crypto.serialization import deserialize_public_key

BITS = 240_000
modulus = random.getrandbits(BITS) | 1 << BITS - 1 | 1
key = bytes(DerSequence([modulus, 65537]).encode())
message = crypto_pb2.PublicKey(key_type=crypto_pb2.KeyType.RSA, data=key).SerializeToString()
start = time.process_time()
try:
    deserialize_public_key(message)
except Exception as error:
    print("refused with", type(error).__name__, end=" ")
seconds = time.process_time() - start
print("after more than 0.2 s:", seconds > 0.2)
print(f"({len(key)} bytes took {seconds:.1f} s)")
