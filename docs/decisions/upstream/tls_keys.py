"""TLS writes the private key of its certificate to a file, and puts the libp2p extension last."""

import ssl
from pathlib import Path

from cryptography import x509
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.security.tls.transport import TLSTransport

LIBP2P = "1.3.6.1.4.1.53594.1.1"
load_cert_chain = ssl.SSLContext.load_cert_chain


def watched(self, certfile, keyfile=None, password=None):
    print("a file has the private key:", "PRIVATE KEY" in Path(keyfile).read_text(), end="; ")
    load_cert_chain(self, certfile, keyfile, password)


ssl.SSLContext.load_cert_chain = watched
transport = TLSTransport(create_new_key_pair())
transport.create_ssl_context(server_side=True)
certificate = x509.load_pem_x509_certificate(transport.get_certificate_pem().encode())
order = [extension.oid.dotted_string for extension in certificate.extensions]
print("the libp2p extension is number", order.index(LIBP2P) + 1, "of", len(order))
