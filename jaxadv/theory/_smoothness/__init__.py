"""Smoothness of a loss along training, on landscapes, and at kinks."""
