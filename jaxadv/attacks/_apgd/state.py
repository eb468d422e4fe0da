r"""The state and trace of an APGD run, and its checkpoint schedule."""

from typing import Literal, NamedTuple

from ...types import Array, Norm

Rule = Literal["repo", "paper"]


class State(NamedTuple):
    """One row per image.

    Attributes:
        points: the iterate.
        previous: the iterate before it.
        gradients: the gradient that the next step follows.
        best_images: the point with the largest loss so far.
        best_gradients: its gradient.
        best_losses: its loss.
        adversarial: the latest misclassified iterate (the first with early exit).
        robust: whether no iterate was misclassified yet.
        broken_at: number in the run of the first misclassified evaluation, -1 if none.
        evaluations: how many evaluations of the run the image has used.
        zero_gradients: how many gradients of the run were exactly 0.
        last_losses: the loss of the evaluation before.
        increases: how often the loss grew since the last checkpoint.
        check_losses: the best loss at the last checkpoint.
        reduced: whether the last checkpoint reduced the step.
        step_sizes: eta.
        topk: L1: the fraction of coordinates that a step may change.
        sparsity: L1: the number of changed coordinates at the last checkpoint.
        targets: the target classes of a targeted loss.
    """

    points: Array
    previous: Array
    gradients: Array
    best_images: Array
    best_gradients: Array
    best_losses: Array
    adversarial: Array
    robust: Array
    broken_at: Array
    evaluations: Array
    zero_gradients: Array
    last_losses: Array
    increases: Array
    check_losses: Array
    reduced: Array
    step_sizes: Array
    topk: Array
    sparsity: Array
    targets: Array


class Trace(NamedTuple):
    """The trace of all evaluations, stacked, beginning with the start point.

    Attributes:
        points: of shape (N + 1, B, H, W, C).
        losses: of shape (N + 1, B).
        gradient_norms: L2 norms of the gradients, of shape (N + 1, B).
        correct: whether the point was classified correctly, of shape (N + 1, B).
        step_sizes: eta after the evaluation, of shape (N + 1, B).
        reduced: whether eta was reduced here, of shape (N + 1, B).
        checked: whether the evaluation was a checkpoint, of shape (N + 1,).
    """

    points: Array
    losses: Array
    gradient_norms: Array
    correct: Array
    step_sizes: Array
    reduced: Array
    checked: Array


def checkpoints(num_steps: int, norm: Norm = "linf", rule: Rule = "repo") -> list[int]:
    """The steps after which the step size is checked.

    Args:
        num_steps: N.
        norm: with "l1" the checkpoints are equidistant.
        rule: "repo" for the recursion of the reference code with its truncations, "paper" for
            ``ceil(p_j N)`` with ``p_1 = 0.22, p_{j+1} = p_j + max(p_j - p_{j-1} - 0.03, 0.06)``.

    Returns:
        Increasing numbers in [1, num_steps].

    Example:
        >>> checkpoints(100)
        [22, 41, 57, 70, 80, 87, 93, 99]
    """
    if norm == "l1":
        window = max(int(0.04 * num_steps), 1)
        return list(range(window, num_steps + 1, window))
    if rule == "paper":
        # p_j in hundredths, so that ceil sees exact numbers: 0.22 + 0.19 + ... drifts in floats.
        return sorted({-(-percent * num_steps // 100) for percent in checkpoints(100)})
    window = max(int(0.22 * num_steps), 1)
    shortest, shrink = max(int(0.06 * num_steps), 1), max(int(0.03 * num_steps), 1)
    found, now = [], window
    while now <= num_steps:
        found.append(now)
        window = max(window - shrink, shortest)
        now += window
    return found
