"""Jobs on leases: starting and following them, and tunnels to their ports."""
