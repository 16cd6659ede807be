"""The wire: frames, messages, services and clients on any byte stream. Knows no libp2p."""
