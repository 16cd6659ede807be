"""Jobs on the leases of this machine: their life from start to end, whatever crashes meanwhile."""
