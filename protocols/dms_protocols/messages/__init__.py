"""What is said, one file per protocol: typed messages with the DMS's field names."""
