"""Figures, claims and notebooks on the theory; run from the repository root, not installed."""
