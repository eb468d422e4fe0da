"""Figures 3 and 6 of the paper: the lines they compare."""

from .curves import Figure, Line
from .table1 import METHODS

FIGURE3 = Figure(3, tuple(Line(method) for method in METHODS))
FIGURE6 = Figure(6, (*FIGURE3.lines, Line("awp", gamma_of="entropy_sgd")))
