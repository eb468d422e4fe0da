"""Optimal attacks, and how they move with the parameters."""
