"""The command line: what parses it, what each command does, and what it shows."""
