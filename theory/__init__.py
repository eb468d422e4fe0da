"""Theory figures, claims and notebooks; run from the repository root, not installed."""

from experiments.cli.help.show import show
from experiments.run import signals

signals.quiet_while_importing("theory")
show()
