"""Numerical checks of the paper's statements and their corrections."""
