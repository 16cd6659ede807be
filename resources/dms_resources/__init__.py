"""The machine and the ledger: what exists and what is promised. Knows no network."""
