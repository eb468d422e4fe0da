"""Speed and memory, beside peers and in absolute terms; run from the repository root."""

from experiments import _help, signals

signals.quiet_while_importing("benchmarks")
_help.show()
