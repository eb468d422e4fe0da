r"""Global optimality of an attack by branch and bound.

C(x) is covered by boxes. A box is dropped if none of its points can be a global maximizer, because
the loss grows along a feasible direction at each of them, and closed once an upper bound of the
loss over its part of C(x) is at most the best loss found plus the tolerance. Bounds come from the
enclosures of value, gradient and Hessian over the box (`enclosures`); with center c, h = z - c,
:math:`|h_i| \le r_i`, the least of

* the value itself;
* the mean value form, :math:`l(c) + \max_h \sum_i \max_{g_i \in G_i} g_i h_i`;
* the Taylor form, :math:`l(c) + \max_h g^T h + \frac12 \sum_i d_i h_i^2`, where
  :math:`h^T H h \le \sum_i d_i h_i^2` for every H in the enclosure: of its midpoint by the
  largest eigenvalue or by rows, of the rest by rows, with
  :math:`|h_i h_j| \le \frac12 (h_i^2 r_j / r_i + h_j^2 r_i / r_j)`.

The maxima are over the box and the ball: for every :math:`\lambda \ge 0` the term
:math:`\lambda (\epsilon^p - \|z - x\|_p^p)` may be added, which leaves one quadratic function
of each coordinate; the best :math:`\lambda` is searched for, and any gives a bound.
"""

import heapq
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ...types import Array
from .enclosures import agrees, enclose
from .feasible import Feasible
from .intervals import Interval, pairs
from .problem import FlatLoss, Problem

_CELLS = 256  # evaluated at once
_ROUNDING = 2.0**-40  # of the sums in a bound, with a few operations for each coordinate
_EDGE = 1e-12  # relative, of the radius
_MULTIPLIERS = 24  # steps of the search for lambda


class GlobalCertificate(NamedTuple):
    """What branch and bound proved about the largest loss over C(x).

    Attributes:
        value: the best loss found, a lower bound.
        upper: an upper bound of the loss over C(x).
        gap: upper - value.
        proved: whether the gap is at most the tolerance.
        cells: boxes visited.
        stopped: whether the limit of boxes stopped it.
        gain: by how much the best point found exceeds the attack of the local search; its loss if
            > 0 belongs to the attack returned.
    """

    value: float
    upper: float
    gap: float
    proved: bool
    cells: int
    stopped: bool
    gain: float


class _Cells(NamedTuple):
    """What one look at a box gives."""

    lo: Any
    hi: Any
    upper: Any
    axis: Any
    cut: Any
    point: Any
    value: Any


def check_loss(problem: Problem, shape: tuple[int, ...]) -> None:
    """Refuses losses that cannot be bounded.

    Raises:
        ValueError: an operation that is not known or not smooth, or wrong derivatives.
    """
    if not bool(_agrees(problem, _samples(problem.feasible), shape=shape)):
        raise ValueError(
            "the loss is not the function whose derivatives JAX returns: it depends on a value "
            "under stop_gradient, or has a wrong custom derivative; pass certificate='local'"
        )


def certify(
    problem: Problem, shape: tuple[int, ...], start: Array, tolerance: float, max_cells: int
) -> tuple[GlobalCertificate, Any]:
    """Bounds the loss over C(x); returns the certificate and the best point found, flat.

    Args:
        problem: with concrete arrays.
        shape: of x.
        start: a point of C(x), flat; its loss is the first to beat.
        tolerance: gap that counts as proved.
        max_cells: boxes to visit at most.
    """
    feasible = problem.feasible
    best, first_value = np.asarray(start), float(problem.loss(start.reshape(shape), problem.theta))
    best_value, closed, visited, count = first_value, -np.inf, 0, itertools.count()
    whole = np.maximum(feasible.low, feasible.x - feasible.eps)
    heap: list[tuple] = [(-np.inf, 0, whole, np.minimum(feasible.high, feasible.x + feasible.eps))]
    while heap and -heap[0][0] > best_value + tolerance and visited < max_cells:
        taken = [heapq.heappop(heap) for _ in range(min(_CELLS, len(heap), max_cells - visited))]
        visited += len(taken)
        fill = ((0, _CELLS - len(taken)), (0, 0))
        ends = (np.pad(np.stack([cell[end] for cell in taken]), fill, "edge") for end in (2, 3))
        found = _Cells(*map(np.asarray, _look(problem, *ends, shape=shape)))
        values = np.where(np.isfinite(found.value), found.value, -np.inf)
        if values.max() > best_value:
            best, best_value = found.point[values.argmax()], float(values.max())
        for i, cell in enumerate(taken):
            upper = min(-cell[0], float(found.upper[i]))
            if upper <= best_value + tolerance:
                closed = max(closed, upper)
                continue
            for half in _halves(found.lo[i], found.hi[i], found.axis[i], found.cut[i]):
                heapq.heappush(heap, (-upper, next(count), *half))
    upper = max([best_value, closed, *(-cell[0] for cell in heap[:1])])
    gap, gain = upper - best_value, best_value - first_value
    proved = gap <= tolerance
    return GlobalCertificate(best_value, upper, gap, proved, visited, not proved, gain), best


def _samples(feasible: Feasible, count: int = 8) -> np.ndarray:
    """Random points of C(x)."""
    rng = np.random.default_rng(0)
    low = np.maximum(feasible.low, feasible.x - feasible.eps)
    high = np.minimum(feasible.high, feasible.x + feasible.eps)
    points = jnp.asarray(rng.uniform(low, high, (count, len(low))))
    return np.asarray(jax.vmap(feasible.project)(points))


def _halves(lo: np.ndarray, hi: np.ndarray, axis: int, cut: float) -> list[tuple]:
    left, right = hi.copy(), lo.copy()
    left[axis] = right[axis] = cut
    return [(lo, left), (right, hi)]


@jax.jit(static_argnames=("shape",))
def _agrees(problem: Problem, points: Array, *, shape: tuple[int, ...]) -> Array:
    loss, jaxpr = _program(problem, shape)
    return jnp.all(jax.vmap(lambda z: agrees(loss, jaxpr, z))(points))


@jax.jit(static_argnames=("shape",))
def _look(problem: Problem, lo: Array, hi: Array, *, shape: tuple[int, ...]) -> _Cells:
    loss, jaxpr = _program(problem, shape)
    return jax.vmap(lambda lo, hi: _look_at(loss, jaxpr, problem.feasible, lo, hi))(lo, hi)


def _program(problem: Problem, shape: tuple[int, ...]) -> tuple[FlatLoss, Any]:
    loss = lambda z: problem.flat_loss(shape)(z, problem.theta)
    return loss, jax.make_jaxpr(loss)(problem.feasible.x)


def _look_at(loss: FlatLoss, jaxpr: Any, feasible: Feasible, lo: Array, hi: Array) -> _Cells:
    """Everything about one box: what remains of it, a bound, a point, and where to cut it."""
    lo, hi, empty = _cropped(feasible, lo, hi)
    center = jnp.clip(0.5 * lo + 0.5 * hi, lo, hi)
    radius = jnp.maximum(hi - center, center - lo) * (1 + 2.0**-50)
    over = enclose(jaxpr, Interval(lo, hi))
    at = enclose(jaxpr, Interval(center, center + 0.0), order=1)
    new_lo, new_hi, hopeless = _reduced(feasible, lo, hi, over.slope)
    hessian = _matrix(over.bend)
    upper = _bound(feasible, center, radius, at, over, hessian)
    upper = jnp.where(empty | hopeless, -jnp.inf, jnp.where(jnp.isnan(upper), jnp.inf, upper))
    widths = new_hi - new_lo
    straddles = (lo < feasible.x) & (feasible.x < hi) & (feasible.norm != "linf")
    curved = jnp.where(jnp.isfinite(hessian.mag), hessian.mag, 1e100)
    score = widths * (curved @ widths) + 1e-6 * widths / jnp.maximum(jnp.max(widths), 1e-300)
    score = jnp.where(widths > 0, score, -1.0)
    axis = jnp.argmax(score)
    middle = jnp.where(straddles, feasible.x, 0.5 * new_lo + 0.5 * new_hi)[axis]
    point = feasible.project(center)
    return _Cells(new_lo, new_hi, upper, axis, middle, point, loss(point))


def _cropped(feasible: Feasible, lo: Array, hi: Array) -> tuple[Array, Array, Array]:
    """The hull of the box's part of the ball, and whether there is none."""
    x, eps = feasible.x, feasible.eps
    if feasible.norm == "linf":
        return lo, hi, jnp.array(False)
    near = jnp.maximum(jnp.maximum(lo - x, x - hi), 0.0)
    p = 2 if feasible.norm == "l2" else 1
    used = near**p
    others = jnp.maximum(jnp.sum(used) - used, 0.0) * (1 - _EDGE)
    room = jnp.maximum(eps**p - others, 0.0) ** (1 / p) * (1 + _EDGE) + _EDGE * eps
    empty = jnp.sum(used) > eps**p * (1 + _EDGE) ** 2
    new_lo, new_hi = jnp.maximum(lo, x - room), jnp.minimum(hi, x + room)
    empty = empty | jnp.any(new_lo > new_hi)
    return jnp.where(empty, lo, new_lo), jnp.where(empty, hi, new_hi), empty


def _reduced(
    feasible: Feasible, lo: Array, hi: Array, slope: Interval
) -> tuple[Array, Array, Array]:
    """First-order conditions of a global maximizer, for all points of the box at once.

    Where the loss grows along a feasible direction at every point, no point is a maximizer, unless
    the direction is blocked: by the box around C(x), or because it would pass x_i. The box is then
    reduced to the blocked points, or dropped if there are none.
    """
    x, eps = feasible.x, feasible.eps
    p = 2 if feasible.norm == "l2" else 1
    if feasible.norm == "linf":
        inside = jnp.array(True)
    else:
        farthest = jnp.maximum(jnp.abs(lo - x), jnp.abs(hi - x))
        inside = jnp.sum(farthest**p) < eps**p * (1 - _EDGE) ** 2
    up, down = inside & (slope.lo > 0), inside & (slope.hi < 0)
    blocked_up, blocked_down = hi == feasible.high, lo == feasible.low
    hopeless = jnp.any(up & ~blocked_up) | jnp.any(down & ~blocked_down)
    lo, hi = jnp.where(up, hi, lo), jnp.where(down, lo, hi)
    if feasible.norm == "linf":
        return lo, hi, hopeless
    # From here on delta = |z - x| on one side of x; outward slopes; what lies on both is left out.
    positive, one_side = lo >= x, (lo >= x) | (hi <= x)
    least = jnp.where(positive, lo - x, x - hi)
    most = jnp.where(positive, hi - x, x - lo)
    out_lo = jnp.where(positive, slope.lo, -slope.hi)
    out_hi = jnp.where(positive, slope.hi, -slope.lo)
    at_box = jnp.where(positive, hi == feasible.high, lo == feasible.low)
    other_side = jnp.where(positive, x > feasible.low, x < feasible.high)
    # Moving towards x is always feasible.
    inward = one_side & (out_hi < 0)
    hopeless |= jnp.any(inward & (least > 0))
    both = one_side[:, None] & one_side[None, :] & ~jnp.eye(x.shape[0], dtype=bool)
    if feasible.norm == "l1":
        # From delta_j to delta_i, blocked where delta_i is at the box or delta_j = 0.
        grows = both & (out_lo[:, None] > out_hi[None, :])
        to_box = grows & (least[None, :] > 0)
        to_zero = grows & ~at_box[:, None]
        hopeless |= jnp.any(to_box & ~at_box[:, None])
        raised, zeroed = jnp.any(to_box, 1), jnp.any(to_zero, 0)
    else:
        # The rotation d delta_i = delta_j, d delta_j = -delta_i, blocked where delta_i is at the
        # box, or delta_j = 0 and nothing is on the other side of x_j.
        low = _least_product(least[None, :], most[None, :], out_lo[:, None])
        high = -_least_product(least[:, None], most[:, None], -out_hi[None, :])
        margin = _EDGE * (jnp.abs(low) + jnp.abs(high))
        free = (least > 0) | other_side
        grows = both & (low - high > margin) & free[None, :]
        hopeless |= jnp.any(grows & ~at_box[:, None])
        raised, zeroed = jnp.any(grows, 1), jnp.zeros_like(inward)
    zeroed = zeroed | inward
    hopeless |= jnp.any(raised & zeroed & (most > 0)) | jnp.any(zeroed & (least > 0))
    lo = jnp.where(raised & positive, hi, jnp.where(zeroed & ~positive, hi, lo))
    hi = jnp.where(raised & ~positive, lo, jnp.where(zeroed & positive, lo, hi))
    return lo, hi, hopeless


def _least_product(least: Array, most: Array, factor: Array) -> Array:
    """The least of delta * factor for delta in [least, most], both >= 0."""
    return jnp.minimum(least * factor, most * factor)


def _matrix(bend: Interval) -> Interval:
    """The symmetric matrix of enclosures."""
    count = int((np.sqrt(8 * bend.lo.shape[0] + 1) - 1) / 2)
    index = np.zeros((count, count), int)
    rows, columns = pairs(count)
    index[rows, columns] = index[columns, rows] = np.arange(len(rows))
    return Interval(bend.lo[index], bend.hi[index])


def _bound(
    feasible: Feasible, center: Array, radius: Array, at: Any, over: Any, hessian: Interval
) -> Array:
    """The least of the three upper bounds of the loss over the box and the ball."""
    middle = hessian.mid
    spread = jnp.maximum(hessian.hi - middle, middle - hessian.lo)
    ratio = radius[None, :] / jnp.where(radius > 0, radius, 1.0)[:, None]
    same = jnp.eye(radius.shape[0], dtype=bool)
    rows = lambda matrix: jnp.sum(jnp.where(same, 0.0, jnp.abs(matrix)) * ratio, 1)
    loose = jnp.diagonal(spread) + rows(spread)
    loose += _ROUNDING * (jnp.abs(jnp.diagonal(middle)) + rows(middle))
    slope = at.slope.mid
    slack = jnp.sum(radius * jnp.maximum(at.slope.hi - slope, slope - at.slope.lo))
    diagonal = (
        jnp.diagonal(middle) + rows(middle) + loose,
        _largest_eigenvalue(middle, radius) + loose,
    )
    low = jnp.stack([over.slope.lo, slope, slope])
    high = jnp.stack([over.slope.hi, slope, slope])
    curved = jnp.stack([jnp.zeros_like(radius), *diagonal])
    most = jax.vmap(lambda *parts: _over_ball(feasible, center, radius, *parts))(low, high, curved)
    bounds = jnp.concatenate([over.value.hi[None], at.value.hi + slack + most])
    return jnp.min(jnp.where(jnp.isnan(bounds), jnp.inf, bounds))


def _largest_eigenvalue(matrix: Array, radius: Array) -> Array:
    """An upper bound of it, for the coordinates that the box leaves free."""
    free = radius > 0
    matrix = jnp.where(free[:, None] & free[None, :], matrix, 0.0)
    size = jnp.sqrt(jnp.sum(matrix**2))
    shifted = matrix - jnp.diag(jnp.where(free, 0.0, 2 * size))
    finite = jnp.where(jnp.isfinite(shifted), shifted, 0.0)
    largest = jnp.linalg.eigvalsh(finite)[-1] + _ROUNDING * 4 * size
    return jnp.where(jnp.isfinite(size), largest, jnp.inf)


def _over_ball(
    feasible: Feasible, center: Array, radius: Array, low: Array, high: Array, curved: Array
) -> Array:
    """A bound over box and ball of sum_i max(low h, high h) + curved h^2 / 2, see above."""
    u, eps = center - feasible.x, feasible.eps
    sign = jnp.where(u >= 0, 1.0, -1.0)

    def dual(multiplier: Array) -> Array:
        if feasible.norm == "l2":
            pull, bend, rest = 2 * multiplier * u, 0.5 * curved - multiplier, u * u
            bound = eps * eps
        else:
            pull, bend, rest = multiplier * sign, 0.5 * curved, jnp.abs(u)
            bound = eps
        upward = _peak(high - pull, bend, radius)
        downward = _peak(pull - low, bend, radius)
        terms = jnp.maximum(upward, downward) - multiplier * rest
        size = jnp.sum(
            jnp.maximum(jnp.abs(high), jnp.abs(low)) * radius + jnp.abs(bend) * radius**2
        )
        size += jnp.sum(jnp.abs(pull) * radius + multiplier * rest) + multiplier * bound
        return multiplier * bound + jnp.sum(terms) + _ROUNDING * size

    free = dual(jnp.zeros(()))
    if feasible.norm == "linf":
        return free
    steepest = jnp.max(jnp.maximum(jnp.abs(low), jnp.abs(high)) + jnp.abs(curved) * radius)
    unit = jnp.where(steepest > 0, steepest, 1.0)
    if feasible.norm == "l2":
        unit = unit * np.sqrt(u.shape[0]) / eps

    def narrow(_: int, ends: tuple) -> tuple:
        a, b = ends
        first, second = a + (b - a) / 3, b - (b - a) / 3
        better = dual(unit * jnp.exp(first)) < dual(unit * jnp.exp(second))
        return jnp.where(better, a, first), jnp.where(better, second, b)

    start = (jnp.asarray(-9.0), jnp.asarray(1.0))
    a, b = jax.lax.fori_loop(0, _MULTIPLIERS, narrow, start)
    return jnp.minimum(free, dual(unit * jnp.exp(0.5 * (a + b))))


def _peak(slope: Array, bend: Array, radius: Array) -> Array:
    """The maximum over 0 <= h <= radius of slope h + bend h^2."""
    ends = jnp.maximum(0.0, (slope + bend * radius) * radius)
    turning = (bend < 0) & (slope > 0) & (slope < -2 * bend * radius)
    return jnp.where(turning, slope * slope / jnp.where(turning, -4 * bend, 1.0), ends)
