"""The ledger: who may have what, for how long; durable, and never more than there is."""
