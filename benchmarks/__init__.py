"""Speed and memory, beside peers and in absolute terms; run from the repository root."""

from experiments.cli.help.show import show
from experiments.run import signals

signals.quiet_while_importing("benchmarks")
show()
