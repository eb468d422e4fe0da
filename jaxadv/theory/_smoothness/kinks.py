r"""Locates jumps of a loss gradient along a line, with their size and roughness exponent.

References:
    docs/formulas.md B.8, B.9 and I.5.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ...checks import check_count
from ...types import Params, PyTree
from .._trees import check_same_structure, moved, precision_of, vector


class SlopeExponent(NamedTuple):
    r"""Growth of a gradient's slope as the spacing shrinks.

    Attributes:
        spacings: h, descending, shape (k,).
        slopes: :math:`\|g(\theta + h u) - g(\theta - h u)\|/2h`, shape (k,).
        exponent: of h in the slopes, fitted to the smaller half of the spacings: 0 where the
            gradient is Lipschitz, -1 at a kink, alpha - 1 where it is Hoelder of exponent alpha;
            0 where the gradient is constant.
    """

    spacings: np.ndarray
    slopes: np.ndarray
    exponent: float


class Kinks(NamedTuple):
    """The kinks on a segment, in order.

    Attributes:
        places: distances from the start along the direction, shape (K,).
        jumps: norm of the jump of the gradient, shape (K,).
        vectors: the jump itself, in the direction of the scan, shape (K, m).
        responsible: for each kink, the entries of the signature that change there; empty without a
        signature.
        num_gradients: gradients that were evaluated.
    """

    places: np.ndarray
    jumps: np.ndarray
    vectors: np.ndarray
    responsible: tuple[tuple[int, ...], ...]
    num_gradients: int


def _unit(direction: PyTree) -> PyTree:
    length = float(np.linalg.norm(vector(direction)))
    if not (np.isfinite(length) and length > 0):
        raise ValueError(f"direction has norm {length}; pass one that is finite and not zero")
    return moved(direction, direction, 1 / length - 1)


def slope_exponent(
    grad_fn: Callable[[Params], PyTree],
    theta: Params,
    direction: PyTree,
    *,
    spacing: float = 1e-2,
    num_levels: int = 8,
    factor: float = 0.5,
) -> SlopeExponent:
    r"""Roughness of a gradient at a point, from its slope at shrinking spacings.

    Args:
        grad_fn: gradient of the loss, a pytree like the parameters.
        theta: the point, a pytree.
        direction: a pytree like ``theta``; only its direction matters.
        spacing: the first h, in units of the Euclidean norm of theta's space.
        num_levels: number of spacings.
        factor: ratio of consecutive spacings.

    Returns:
        Spacings, slopes, exponent.

    Raises:
        ValueError: the direction is zero or has a different structure, or a setting is invalid.

    Example:
        >>> found = slope_exponent(lambda t: np.sign(t), np.zeros(1), np.ones(1))
        >>> round(found.exponent, 6)  # the kink of |t|
        -1.0

    References:
        formulas B.8 and I.5.
    """
    check_count("num_levels", num_levels, 2)
    check_same_structure("direction", direction, "theta", theta)
    if not (spacing > 0 and 0 < factor < 1):
        raise ValueError(f"spacing={spacing}, factor={factor}: need spacing > 0, 0 < factor < 1")
    unit = _unit(direction)
    spacings = spacing * factor ** np.arange(num_levels)
    slopes = []
    with precision_of(theta):
        for h in spacings:
            ends = [vector(grad_fn(moved(theta, unit, sign * h))) for sign in (-1, 1)]
            slopes.append(np.linalg.norm(ends[1] - ends[0]) / (2 * h))
    slopes = np.array(slopes)
    tail = slice(num_levels // 2 if num_levels > 3 else 0, None)
    if not slopes[tail].all():
        return SlopeExponent(spacings, slopes, 0.0)
    fit = np.polyfit(np.log(spacings[tail]), np.log(slopes[tail]), 1)
    return SlopeExponent(spacings, slopes, float(fit[0]))


def find_kinks(
    grad_fn: Callable[[Params], PyTree],
    theta: Params,
    direction: PyTree,
    *,
    length: float,
    num_points: int = 64,
    resolution: float = 1e-9,
    min_jump: float = 1e-6,
    signature_fn: Callable[[Params], np.ndarray] | None = None,
) -> Kinks:
    """Scans a segment for jumps of the gradient and bisects each one.

    Every cell of the scan is bisected toward the half where the gradient changes more. If the
    change shrinks with the cell, the gradient is smooth; if it persists, there is a jump. At most
    one jump per cell is found, and jumps that are small compared with the smooth change over their
    cell are missed: use more points.

    Args:
        grad_fn: gradient of the loss, a pytree like the parameters.
        theta: start of the segment.
        direction: a pytree like ``theta``; only its direction matters.
        length: length of the segment in the Euclidean norm of theta's space.
        num_points: cells of the scan.
        resolution: width to which a jump is bracketed.
        min_jump: smaller jumps are not reported.
        signature_fn: an array of signs, bounds or branch numbers of the attack; its entries that
            differ on the two sides of a jump are reported as responsible.

    Returns:
        The kinks.

    Raises:
        ValueError: the direction is zero or has a different structure, or a setting is invalid.

    Example:
        >>> kinks = find_kinks(np.sign, np.array([-0.3, 1.0]), np.array([1.0, 0.0]), length=1.0,
        ...                    signature_fn=np.sign)
        >>> kinks.places.round(6).tolist(), kinks.jumps.tolist(), kinks.responsible
        ([0.3], [2.0], ((0,),))

    References:
        formulas I.5.
    """
    check_count("num_points", num_points, 1)
    check_same_structure("direction", direction, "theta", theta)
    if not (length > 0 and resolution > 0 and min_jump > 0):
        raise ValueError(
            f"length={length}, resolution={resolution}, min_jump={min_jump} must be positive"
        )
    unit = _unit(direction)
    count = 0

    def gradient(place: float) -> np.ndarray:
        nonlocal count
        count += 1
        return vector(grad_fn(moved(theta, unit, place)))

    found: list[tuple[float, np.ndarray, tuple[int, ...]]] = []
    with precision_of(theta):
        places = np.linspace(0.0, length, num_points + 1)
        values = [gradient(place) for place in places]
        for index in range(num_points):
            cell = (places[index], places[index + 1], values[index], values[index + 1])
            bracket = _bisect(gradient, *cell, resolution, min_jump)
            if bracket is None or (found and bracket[0] - found[-1][0] <= 2 * resolution):
                continue  # a jump on the border of two cells is found from one of them only
            low, high, jump = bracket
            found.append(((low + high) / 2, jump, _changed(signature_fn, theta, unit, low, high)))
    return Kinks(
        np.array([place for place, _, _ in found]),
        np.array([np.linalg.norm(jump) for _, jump, _ in found]),
        np.array([jump for _, jump, _ in found]).reshape(len(found), len(vector(theta))),
        tuple(entries for _, _, entries in found),
        count,
    )


def _bisect(
    gradient: Callable[[float], np.ndarray],
    low: float,
    high: float,
    at_low: np.ndarray,
    at_high: np.ndarray,
    resolution: float,
    min_jump: float,
) -> tuple[float, float, np.ndarray] | None:
    """The bracket of the jump in a cell, None if the gradient is smooth there."""
    change = np.linalg.norm(at_high - at_low)
    shrinking = 0
    while high - low > resolution:
        if change < min_jump:
            return None
        middle = (low + high) / 2
        at_middle = gradient(middle)
        left, right = np.linalg.norm(at_middle - at_low), np.linalg.norm(at_high - at_middle)
        if left >= right:
            high, at_high, smaller = middle, at_middle, left
        else:
            low, at_low, smaller = middle, at_middle, right
        shrinking = shrinking + 1 if smaller < 0.7 * change else 0
        if shrinking == 4:
            return None
        change = smaller
    return (low, high, at_high - at_low) if change >= min_jump else None


def _changed(
    signature_fn: Callable[[PyTree], Any] | None,
    theta: PyTree,
    unit: PyTree,
    low: float,
    high: float,
) -> tuple[int, ...]:
    if signature_fn is None:
        return ()
    sides = [np.asarray(signature_fn(moved(theta, unit, place))).ravel() for place in (low, high)]
    return tuple(int(i) for i in np.flatnonzero(sides[0] != sides[1]))
