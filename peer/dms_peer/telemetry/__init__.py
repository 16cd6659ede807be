"""What tells the operator how the peer does: metrics, log lines, memory."""
