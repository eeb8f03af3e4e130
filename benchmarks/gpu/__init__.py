"""The GPU command: see __main__.py."""
