"""Resources in formats of others: JSON documents, and maps as Go programs write them."""
