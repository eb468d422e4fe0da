"""Figures, claims and notebooks on the theory; run from the repository root, not installed."""

from experiments import _help, signals

signals.quiet_while_importing("theory")
_help.show()
