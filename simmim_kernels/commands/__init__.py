"""What the command line shows: one module a command."""
