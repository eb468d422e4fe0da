"""Experiments: everything with I/O - data, configs, runs, tables, figures."""

from .cli.help.show import show
from .run import signals

signals.quiet_while_importing("experiments")
show()
