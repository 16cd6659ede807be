"""What the owner alone may ask, of a running peer through its socket or of its ledger."""
