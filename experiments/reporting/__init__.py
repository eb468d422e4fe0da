"""Curves, their style, and the HTML page of a run."""
