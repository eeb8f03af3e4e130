"""Bounds beside mutual information that is known in closed form: see __main__.py."""
