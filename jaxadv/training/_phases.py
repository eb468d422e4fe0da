"""The phases of a run, each with its own optimizer."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import optax


class Phase(NamedTuple):
    """A part of a run with its own optimizer, initialized when the phase starts.

    Attributes:
        end: the minibatch after its last one, counted over the run. An outer step of EntropySGD
        that crosses it is finished first, unless the run ends.
        optimizer: ``(first, n_in) -> optax optimizer``, from the number of the phase's first
            minibatch and its inner iterations.
        n_in: inner iterations of EntropySGD; 0 for any other optimizer.
        extra_minibatch: of EntropySGD, see :meth:`Program.entropy_step`.
        perturbed_decay: of the others, see :meth:`Program.sgd_steps`.
        first: its first minibatch. The program sets it, and rounds ``end`` to whole updates.
    """

    end: int
    optimizer: Callable[[int, int], optax.GradientTransformation]
    n_in: int = 0
    extra_minibatch: bool = False
    perturbed_decay: float = 0.0
    first: int = 0

    @property
    def group(self) -> int:
        """Minibatches in one indivisible update: 1, or those of an outer step."""
        return self.n_in + self.extra_minibatch if self.n_in else 1


def placed(phases: Sequence[Phase]) -> tuple[Phase, ...]:
    """The nonempty phases, from the first to the end of the run."""
    placed, first = [], 0
    for phase in phases:
        length = -(-(phase.end - first) // phase.group) * phase.group
        end = min(first + length, phases[-1].end)
        if first < end:
            placed.append(phase._replace(first=first, end=end))
            first = end
    return tuple(placed)
