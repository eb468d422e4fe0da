r"""Smoothness of an adversarial loss along checkpoints: monotonicity, and sources of roughness.

The gradient of the adversarial loss is :math:`G(x'(\theta), \theta)`. Between two checkpoints it
changes because theta changes and because the attack moves; and because the exact loss is a maximum
of functions, it can't change in every way: a violation of (MON) shows that an attack failed.

References:
    docs/formulas.md A.9, I.3 and I.4.
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from ..._program import trace
from ..._transfers import on_host
from ...checks import check_choice, check_count
from ...types import Array, Params, PyTree
from .._trees import as_arrays, check_same_structure, precision_of, vector


class MonotonicityAudit(NamedTuple):
    r"""The result of :func:`monotonicity_audit`.

    Attributes:
        quotients: :math:`\langle g_a - g_b, a - b\rangle/\|a - b\|^2` of each pair, shape (P,).
        pairs: indices of the checkpoints, shape (P, 2).
        bound: -w.
        violations: which quotients are below the bound, shape (P,): the attack at one of the two
        checkpoints was not a global maximum.
        worst: the smallest quotient.
    """

    quotients: np.ndarray
    pairs: np.ndarray
    bound: float
    violations: np.ndarray
    worst: float


def monotonicity_audit(
    grad_fn: Callable[[Params], PyTree],
    checkpoints: Sequence[Params],
    *,
    weak_convexity: float,
    pairs: Literal["consecutive", "all"] = "consecutive",
    tolerance: float = 1e-9,
) -> MonotonicityAudit:
    r"""Checks (MON), which holds for every pair of points if the attacks are exact.

    .. math::
        \langle\nabla L_\epsilon(a) - \nabla L_\epsilon(b), a - b\rangle \ge -w\|a - b\|^2

    Args:
        grad_fn: gradient of the adversarial loss at the audited attack, a pytree like
            the parameters.
        checkpoints: parameters, pytrees of the same kind; equal ones are skipped.
        weak_convexity: w, such that every :math:`l(x', \theta) + w\|\theta\|^2/2` is convex on the
            segments; see :func:`segment_weak_convexity`.
        pairs: neighbors in the sequence, or all pairs.
        tolerance: relative slack for rounding, times the size of the gradient difference.

    Returns:
        The audit.

    Raises:
        ValueError: fewer than two different checkpoints, checkpoints of different structure, or a
            negative ``weak_convexity``.

    Example:
        >>> grad_fn = lambda theta: -theta  # that of -theta^2/2, weakly convex with w = 1
        >>> audit = monotonicity_audit(grad_fn, [np.zeros(2), np.ones(2)], weak_convexity=0.5)
        >>> float(audit.worst), audit.violations.tolist()
        (-1.0, [True])

    References:
        formulas A.9 (F2) and I.3.
    """
    check_choice("pairs", pairs, ("consecutive", "all"))
    if not weak_convexity >= 0:
        raise ValueError(f"weak_convexity={weak_convexity} must be >= 0; 0 for convex losses")
    _check_checkpoints(checkpoints)
    with precision_of(checkpoints[0]):
        gradients = [vector(grad_fn(theta)) for theta in checkpoints]
    points = [vector(theta) for theta in checkpoints]
    count = len(points)
    if pairs == "all":
        indices = [(i, j) for i in range(count) for j in range(i + 1, count)]
    else:
        indices = [(i, i + 1) for i in range(count - 1)]
    found, quotients, slacks = [], [], []
    for i, j in indices:
        step, change = points[j] - points[i], gradients[j] - gradients[i]
        length = float(step @ step)
        if length == 0:
            continue
        found.append((i, j))
        quotients.append(float(change @ step) / length)
        slacks.append(tolerance * float(np.linalg.norm(change)) / np.sqrt(length))
    if not found:
        raise ValueError("checkpoints are all equal; pass at least two different ones")
    values = np.array(quotients)
    violations = values < -weak_convexity - np.array(slacks) - tolerance * weak_convexity
    return MonotonicityAudit(
        values, np.array(found), -float(weak_convexity), violations, float(values.min())
    )


def _check_checkpoints(checkpoints: Sequence[Params]) -> None:
    if len(checkpoints) < 2:
        raise ValueError(f"checkpoints has {len(checkpoints)} entries; pass at least two")
    for index, theta in enumerate(checkpoints[1:], 1):
        check_same_structure(f"checkpoints[{index}]", theta, "checkpoints[0]", checkpoints[0])


@on_host
def segment_weak_convexity(
    loss: Callable[[Array, Params], Array],
    start: Params,
    end: Params,
    attacks: Sequence[Array],
    *,
    num_points: int = 17,
) -> float:
    r"""Modulus w that (MON) needs for one pair: negative curvature along the segment.

    For the pair a, b with attacks :math:`x'_a, x'_b` the proof of (MON) uses only
    :math:`-u^T A(x', \theta) u`, u the direction of b - a, at the two frozen attacks. The largest
    value over ``num_points`` points of the segment is returned; between them it is not known.

    Args:
        loss: :math:`l(x', \theta)`, a scalar, twice differentiable in theta.
        start: a.
        end: b.
        attacks: the attacks at a and at b.
        num_points: points on the segment.

    Returns:
        The modulus, at least 0.

    Raises:
        ValueError: a and b are equal or of different structure.

    Example:
        >>> loss = lambda x, theta: x @ jnp.cos(theta)
        >>> attacks = [np.ones(1), np.ones(1)]
        >>> float(segment_weak_convexity(loss, np.zeros(1), np.ones(1), attacks))
        1.0

    References:
        formulas A.9 (F2) and I.3.
    """
    check_count("num_points", num_points, 2)
    check_same_structure("end", end, "start", start)
    with precision_of(start, end):
        start, end = as_arrays((start, end))
        step = jax.tree.map(jnp.subtract, end, start)
        length = np.linalg.norm(vector(step))
        if length == 0:
            raise ValueError("start and end are equal; there is no segment between them")

        places = jnp.linspace(0.0, 1.0, num_points)
        stacked = jnp.stack([jnp.asarray(x) for x in attacks])
        traced = trace(loss, stacked[0], start, name="loss")
        lowest = float(_segment_curvatures(start, step, stacked, places, traced).min())
    return max(0.0, -lowest / float(length) ** 2)


@jax.jit
def _segment_curvatures(
    start: PyTree, step: PyTree, attacks: Array, places: Array, loss: Partial
) -> Array:
    def curvature(x: Array, place: Array) -> Array:
        along = lambda t: loss(x, jax.tree.map(lambda p, d: p + t * d, start, step))
        return jax.grad(jax.grad(along))(place)

    # One point at a time: the parameters may be those of a network.
    return jax.lax.map(lambda x: jax.lax.map(lambda t: curvature(x, t), places), attacks)


class SmoothnessSplit(NamedTuple):
    r"""The rate of change of the adversarial loss gradient and its parts; one entry per step.

    With :math:`\Delta = \|\theta_1 - \theta_0\|`:

    Attributes:
        step: :math:`\Delta`.
        total: :math:`\|G(x'_1,\theta_1) - G(x'_0,\theta_0)\|/\Delta`.
        parameter: the part at the frozen attack,
            :math:`\|G(x'_0,\theta_1) - G(x'_0,\theta_0)\|/\Delta`.
        attack: the part of the attack's motion,
            :math:`\|G(x'_1,\theta_1) - G(x'_0,\theta_1)\|/\Delta`.
        attack_share: of the squared total: projection of the attack's part on the total change,
            relative to it. The parameter's share is 1 minus this; nan if nothing changed.
        attack_motion: :math:`\|x'_1 - x'_0\|/\Delta`, the modulus of the attack.
        flips: fraction of coordinates at a bound of the ball that are at the other one after the
            step; nan without ``bounds``.
        stability: total / (2 / learning rate), above 1 beyond the edge of stability; nan without
            ``learning_rate``.
    """

    step: np.ndarray
    total: np.ndarray
    parameter: np.ndarray
    attack: np.ndarray
    attack_share: np.ndarray
    attack_motion: np.ndarray
    flips: np.ndarray
    stability: np.ndarray


def smoothness_along(
    grad_fn: Callable[[Array, Params], PyTree],
    attack_fn: Callable[[Params], Array],
    checkpoints: Sequence[Params],
    *,
    bounds: tuple[Array, Array] | None = None,
    learning_rate: float | None = None,
) -> SmoothnessSplit:
    """Splits the local smoothness between consecutive checkpoints into its two parts.

    Use common random numbers: ``grad_fn`` closes over one minibatch, ``attack_fn`` over that
    minibatch and one start of the attack, so that only theta differs.

    Args:
        grad_fn: gradient of the loss at a frozen attack, ``grad_fn(x_adv, theta)``, a pytree like
            the parameters.
        attack_fn: the attack on the loss with these parameters, an array.
        checkpoints: parameters, pytrees of the same kind.
        bounds: lowest and highest value that each coordinate of the attack may take (Linf ball and
            box); counts the coordinates that jump between them.
        learning_rate: compares the total with the edge of stability, 2 / learning rate.

    Returns:
        The split, each field of shape (len(checkpoints) - 1,).

    Raises:
        ValueError: fewer than two checkpoints, different structures, two equal neighbors, or
            bounds that do not have the attack's shape.

    Example:
        >>> attack_fn = lambda theta: -np.sign(theta)  # a linear model under Linf, eps = 1
        >>> grad_fn = lambda x, theta: 2 * x
        >>> thetas = [np.array([1.0, 1.0]), np.array([1.0, -1.0])]
        >>> split = smoothness_along(grad_fn, attack_fn, thetas, bounds=(-np.ones(2), np.ones(2)))
        >>> split.total.tolist(), split.attack_share.tolist(), split.flips.tolist()
        ([2.0], [1.0], [0.5])

    References:
        formulas I.4.
    """
    _check_checkpoints(checkpoints)
    with precision_of(checkpoints[0]):
        rows = []
        theta, x_adv = checkpoints[0], attack_fn(checkpoints[0])
        gradient = vector(grad_fn(x_adv, theta))
        for index, theta_next in enumerate(checkpoints[1:], 1):
            step = np.linalg.norm(vector(theta_next) - vector(theta))
            if step == 0:
                raise ValueError(f"checkpoints[{index - 1}] and checkpoints[{index}] are equal")
            x_next = attack_fn(theta_next)
            frozen = vector(grad_fn(x_adv, theta_next))
            after = vector(grad_fn(x_next, theta_next))
            rows.append(
                _split(float(step), gradient, frozen, after, x_adv, x_next, bounds, learning_rate)
            )
            theta, x_adv, gradient = theta_next, x_next, after
    return SmoothnessSplit(*(np.array(column) for column in zip(*rows, strict=True)))


def _split(
    step: float,
    before: np.ndarray,
    frozen: np.ndarray,
    after: np.ndarray,
    x_0: Array,
    x_1: Array,
    bounds: tuple[Array, Array] | None,
    learning_rate: float | None,
) -> tuple[float, ...]:
    total, attack = after - before, after - frozen
    square = float(total @ total)
    change = float(np.linalg.norm(total)) / step
    return (
        float(step),
        change,
        float(np.linalg.norm(frozen - before)) / step,
        float(np.linalg.norm(attack)) / step,
        float(attack @ total) / square if square > 0 else np.nan,
        float(np.linalg.norm(vector(x_1) - vector(x_0))) / step,
        _flips(x_0, x_1, bounds),
        change * learning_rate / 2 if learning_rate is not None else np.nan,
    )


def _flips(x_0: Array, x_1: Array, bounds: tuple[Array, Array] | None) -> float:
    if bounds is None:
        return np.nan
    low, high = (np.asarray(bound, np.float64) for bound in bounds)
    sides = []
    for x in (np.asarray(x_0, np.float64), np.asarray(x_1, np.float64)):
        if low.shape != x.shape or high.shape != x.shape:
            raise ValueError(
                f"bounds have shapes {low.shape} and {high.shape}, the attack {x.shape}; give the "
                "lowest and highest value of every coordinate"
            )
        slack = 1e-5 * (high - low)  # float32 attacks miss their bound by rounding
        sides.append((x >= high - slack).astype(int) - (x <= low + slack).astype(int))
    at_bound = sides[0] != 0
    flipped = at_bound & (sides[1] == -sides[0])
    return float(flipped.sum() / at_bound.sum()) if at_bound.any() else 0.0
