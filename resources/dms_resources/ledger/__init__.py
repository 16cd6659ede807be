"""The ledger: durable leases, with holders and deadlines, and never more than the owner offers."""
