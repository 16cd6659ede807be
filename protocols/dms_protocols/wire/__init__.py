"""Bytes on the wire: frames, CBOR, envelopes of requests and answers."""
