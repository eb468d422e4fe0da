"""Instant ``--help``, from stored texts."""
