"""Speed and memory benchmarks, absolute and against peers; run from the repository root."""

from experiments.cli.help.show import show
from experiments.run import signals

signals.quiet_while_importing("benchmarks")
show()
