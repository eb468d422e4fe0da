"""Experiments: everything that touches the outside - data, configs, runs, tables, figures."""

from . import _help, signals

signals.quiet_while_importing("experiments")
_help.show()
