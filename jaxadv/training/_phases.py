"""The parts of a run, each with an optimizer of its own."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import optax


class Phase(NamedTuple):
    """A part of a run with an optimizer of its own, which starts fresh when the phase does.

    Attributes:
        end: the minibatch after its last one, counted over the run. An outer step of EntropySGD
            that reaches over it is finished first, unless the run ends.
        optimizer: ``(first, n_in) -> optax optimizer``, from the number of the phase's first
            minibatch and its inner iterations.
        n_in: inner iterations of EntropySGD; 0 is any other optimizer.
        extra_minibatch: of EntropySGD, see :meth:`Program.entropy_step`.
        perturbed_decay: of the others, see :meth:`Program.sgd_steps`.
        first: its first minibatch. A program fills it in, and moves ``end`` to whole updates.
    """

    end: int
    optimizer: Callable[[int, int], optax.GradientTransformation]
    n_in: int = 0
    extra_minibatch: bool = False
    perturbed_decay: float = 0.0
    first: int = 0

    @property
    def group(self) -> int:
        """Minibatches of one update, which is not divided: 1, or those of an outer step."""
        return self.n_in + self.extra_minibatch if self.n_in else 1


def placed(phases: Sequence[Phase]) -> tuple[Phase, ...]:
    """The phases that have a minibatch, from the first to the end of the run."""
    placed, first = [], 0
    for phase in phases:
        length = -(-(phase.end - first) // phase.group) * phase.group
        end = min(first + length, phases[-1].end)
        if first < end:
            placed.append(phase._replace(first=first, end=end))
            first = end
    return tuple(placed)
