r"""Optimal attacks to machine precision, for L2, Linf and L1 balls with or without a box.

Three stages per start (docs/formulas.md C.5), all starts at once: ascent with steps of decreasing
length; monotone projected-gradient ascent with backtracking; Newton steps on the KKT system of the
current active set, with each Hessian eigenvalue replaced by its absolute value, accepted if the
loss grows or the residual halves. The best start wins and comes with its certificates.
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from ...checks import check_count, is_concrete
from ...types import Array, Key, Norm, PyTree
from .._float64 import in_float64
from .branch import GlobalCertificate, certify, check_loss
from .certificates import Certificates, analyse, kind_name
from .feasible import Bounds, Feasible, l2_norm
from .problem import FlatLoss, Problem, ScalarLoss, make_problem
from .stages import ascend, climb, polish
from .starts import starts

_VALLEY_POINTS = 33


class OptimalAttack(NamedTuple):
    """An attack and its certificates.

    Attributes:
        x_adv: x', shaped like x.
        value: its loss.
        kind_code: index into ("interior", "sphere", "vertex", "face", "degenerate",
            "unconverged"); `kind` is the name.
        certificates: see `Certificates`.
        value_gap: gap to the best other converged maximum; inf if none was found. Where it is 0 the
        adversarial loss has a kink although each branch is smooth.
        certificate: bounds of the largest loss over C(x), or None if none was asked for.
    """

    x_adv: Array
    value: Array
    kind_code: Array
    certificates: Certificates
    value_gap: Array
    certificate: GlobalCertificate | None = None

    @property
    def kind(self) -> Any:
        """Name of the kind, or an array of names for a batch."""
        return kind_name(self.kind_code)

    @property
    def optimality(self) -> str:
        """How far optimality is proved: "global", up to the certificate's gap, or "local"."""
        return "global" if self.certificate is not None and self.certificate.proved else "local"


class PolishedAttack(NamedTuple):
    """An attack refined from a given one, and how far it moved.

    Attributes:
        x_adv: see `OptimalAttack`.
        value: see `OptimalAttack`.
        kind_code: see `OptimalAttack`.
        certificates: see `OptimalAttack`.
        value_gap: inf, since no other maximum is searched for.
        gain: loss increase from the projected start, >= 0 up to rounding.
        distance: Euclidean distance from there.
        switched: whether the loss falls anywhere on the straight path there (the arc, between
        points of the sphere): polishing crossed a valley, or left a maximum behind, so this may be
        the maximum of another branch. False does not prove the opposite.
    """

    x_adv: Array
    value: Array
    kind_code: Array
    certificates: Certificates
    value_gap: Array
    gain: Array
    distance: Array
    switched: Array

    @property
    def kind(self) -> Any:
        """Name of the kind, or an array of names for a batch."""
        return kind_name(self.kind_code)


def search(
    key: Key, problem: Problem, shape: tuple[int, ...], num_restarts: int
) -> tuple[Array, Array]:
    """The best local maximum over all starts (flat), and the gap to the second best."""
    feasible, flat_loss = problem.feasible, problem.flat_loss(shape)
    loss = lambda z: flat_loss(z, problem.theta)
    begin = starts(key, feasible, jax.grad(loss)(feasible.x), num_restarts)
    run = lambda z: polish(loss, feasible, climb(loss, feasible, ascend(loss, feasible, z)))
    points, values, residuals = jax.vmap(run)(begin)
    values = jnp.where(jnp.isfinite(values), values, -jnp.inf)
    top = jnp.max(values)
    size = jnp.abs(top) + l2_norm(jax.grad(loss)(points[jnp.argmax(values)])) * feasible.eps
    # Ties differ by rounding; the residual says which start converged best.
    ties = values >= top - 1e-12 * size
    best = jnp.argmin(
        jnp.where(ties, jnp.where(jnp.isfinite(residuals), residuals, 1e300), jnp.inf)
    )
    # A maximum found by two starts is not its own runner-up.
    apart = jnp.max(jnp.abs(points - points[best][None, :]), axis=1) > 1e-4 * feasible.eps
    others = jnp.max(jnp.where(apart & (residuals <= 1e-9), values, -jnp.inf))
    return points[best], jnp.maximum(values[best] - others, 0.0)


def _falls_on_the_way(loss: FlatLoss, feasible: Feasible, start: Array, end: Array) -> Array:
    """Whether the loss falls on the path from start to end, on the arc if both are on a sphere."""
    first, last = start - feasible.x, end - feasible.x

    def between(t: Array) -> Array:
        r = (1 - t) * first + t * last
        if feasible.norm == "l2":
            length = l2_norm(r)
            wanted = (1 - t) * l2_norm(first) + t * l2_norm(last)
            r = jnp.where(length > 0, r * (wanted / jnp.where(length > 0, length, 1.0)), r)
        return loss(feasible.project(feasible.x + r))

    values = jax.lax.map(between, jnp.linspace(0.0, 1.0, _VALLEY_POINTS, dtype=start.dtype))
    # Losses within rounding are not a valley.
    noise = 1e-12 * (jnp.abs(values[0]) + jnp.abs(values[-1]) + jnp.max(jnp.abs(values)))
    return jnp.max(jax.lax.cummax(values) - values) > noise


@jax.jit(static_argnames=("shape", "num_restarts"))
def _find(
    key: Key, problem: Problem, tol: float | Array, *, shape: tuple[int, ...], num_restarts: int
) -> OptimalAttack:
    z, value_gap = search(key, problem, shape, num_restarts)
    return _report(problem, shape, z, tol, value_gap)


@jax.jit(static_argnames=("shape",))
def _follow(
    problem: Problem,
    x_adv: Array,
    tol: float | Array,
    max_step: Array | None = None,
    *,
    shape: tuple[int, ...],
) -> PolishedAttack:
    feasible, flat_loss = problem.feasible, problem.flat_loss(shape)
    loss = lambda z: flat_loss(z, problem.theta)
    start = feasible.project(x_adv.reshape(-1))
    risen = climb(loss, feasible, start) if max_step is None else start
    z, value, _ = polish(loss, feasible, risen, max_step)
    return PolishedAttack(
        *_report(problem, shape, z, tol, jnp.asarray(jnp.inf, z.dtype))[:5],
        gain=value - loss(start),
        distance=l2_norm(z - start),
        switched=_falls_on_the_way(loss, feasible, start, z),
    )


def _certified(
    problem: Problem, shape: tuple[int, ...], found: OptimalAttack, tol: float, *budget: Any
) -> OptimalAttack:
    """Adds the global certificate, and moves to a better maximum if it found one."""
    certificate, best = certify(problem, shape, found.x_adv.reshape(-1), *budget)
    if certificate.gain > 1e-12 * (1 + abs(certificate.value)):
        before = found.value
        better = _follow(problem, jnp.asarray(best), tol, shape=shape)
        found = OptimalAttack(*better[:4], value_gap=better.value - before)
        value = max(certificate.value, float(found.value))
        upper = max(certificate.upper, value)
        proved = upper - value <= budget[0]
        certificate = certificate._replace(
            value=value, upper=upper, gap=upper - value, proved=proved, stopped=not proved,
            gain=value - float(before),
        )  # fmt: skip
    return found._replace(certificate=certificate)


def _report(
    problem: Problem, shape: tuple[int, ...], z: Array, tol: float | Array, value_gap: Array
) -> OptimalAttack:
    found = analyse(problem.flat_loss(shape), problem.theta, problem.feasible, z, tol)
    return OptimalAttack(
        z.reshape(shape), found.value, found.kind_code, found.certificates, value_gap
    )


@in_float64
def optimal_attack(
    key: Key,
    loss: ScalarLoss,
    theta: PyTree,
    x: Array,
    *,
    norm: Norm,
    eps: float | Array,
    bounds: Bounds = None,
    num_restarts: int = 8,
    tol: float = 1e-9,
    certificate: Literal["local", "global"] = "local",
    gap_tol: float = 1e-6,
    max_cells: int = 100_000,
) -> OptimalAttack:
    r"""The attack that maximizes the loss over :math:`C(x)`, with certificates, in float64.

    Runs from x, from both ends of the ball along the gradient there and from ``num_restarts``
    random points; for L1 also from the ball's vertices (those of the 16 steepest coordinates) and
    from ``num_restarts`` random points of its edges. On smooth losses the relative residual ends
    near 1e-14. ``certificates`` prove a *local* maximum. Only for a loss that is concave in x do
    they prove a global one (``certificates.gap`` bounds the error); otherwise more starts make it
    more likely.

    ``certificate="global"`` bounds the error for smooth losses in few dimensions (seconds for Linf
    up to about 10, for L2 and L1 up to about 4; docs/theory.md has a table) by branch and bound:
    C(x) is cut into boxes :math:`B` until for each of them a bound of

    .. math:: \max_{z \in B \cap C(x)} l(z) \le l(c) + \max_{z \in B \cap C(x)}
        \Big(g^T (z - c) + \tfrac12 \sum_i d_i (z - c)_i^2\Big)

    is at most the best loss found plus ``gap_tol``, where c is the middle of B, g the gradient
    there, and d from outward-rounded interval bounds of the Hessian over B. Networks of softplus,
    swish, tanh, sigmoid and cross-entropy are such losses, ReLU networks are not. If it meets a
    better point than the search did, that is polished and returned.

    Works under ``jax.jit`` and ``jax.vmap`` within ``jax.enable_x64(True)``. The loss is traced at
    every call; losses that differ only in the arrays they close over (weights, labels) share one
    compilation.

    Args:
        key: typed PRNG key of the random starts.
        loss: function of (x, theta) to a scalar, one example.
        theta: parameters, any pytree of real arrays.
        x: clean example of any shape.
        norm: "linf", "l2" or "l1".
        eps: radius >= 0, in the units of x.
        bounds: None, or (low, high), numbers or arrays like x: the box, which contains x.
        num_restarts: number of random starts (of each kind, for L1).
        tol: largest relative residual that counts as converged.
        certificate: "local", or "global" for bounds of the largest loss, outside ``jax.jit`` only.
        gap_tol: gap between the bounds, in units of the loss, that counts as proved.
        max_cells: boxes after which it gives up; the bounds hold nevertheless.

    Returns:
        An `OptimalAttack`; its ``optimality`` is "local" unless "global" is proved.

    Raises:
        ValueError: unknown norm, negative radius, x outside the bounds, a loss that is not a
            scalar or not float64, a leaf of theta that is not real; with a global certificate also
            an operation of the loss that is not known or not smooth, and abstract arguments.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> loss = lambda x, theta: -jnp.sum((x - theta) ** 2)
        >>> attack = optimal_attack(
        ...     jax.random.key(0), loss, jnp.array([3.0, 4.0]), jnp.zeros(2), norm="l2", eps=1.0
        ... )
        >>> attack.kind, attack.x_adv.round(6).tolist()
        ('sphere', [0.6, 0.8])
        >>> attack.optimality
        'local'
        >>> waves = lambda x, theta: jnp.sum(jnp.tanh(theta * x) * x)
        >>> attack = optimal_attack(
        ...     jax.random.key(0), waves, jnp.array([1.0, 2.0]), jnp.zeros(2), norm="l1", eps=1.0,
        ...     certificate="global",
        ... )
        >>> attack.optimality, round(attack.certificate.upper, 5)
        ('global', 0.96403)

    References:
        formulas C.5; Horst and Tuy, Global Optimization, 1996, on branch and bound; Rump,
        Verification methods, Acta Numerica 2010, on interval arithmetic.
    """
    check_count("num_restarts", num_restarts, 0)
    check_count("max_cells", max_cells, 1)
    if certificate not in ("local", "global"):
        raise ValueError(f"certificate={certificate!r} must be 'local' or 'global'")
    problem = make_problem(loss, theta, x, norm=norm, eps=eps, bounds=bounds)
    if certificate == "local":
        return _find(key, problem, tol, shape=jnp.shape(x), num_restarts=num_restarts)
    if not all(map(is_concrete, jax.tree.leaves((key, problem)))):
        raise ValueError(
            "certificate='global' branches on values, so it cannot run inside jax.jit, vmap or "
            "grad; call optimal_attack outside of them, one example at a time"
        )
    check_loss(problem, jnp.shape(x))
    found = _find(key, problem, tol, shape=jnp.shape(x), num_restarts=num_restarts)
    return _certified(problem, jnp.shape(x), found, tol, float(gap_tol), max_cells)


@in_float64
def polish_attack(
    loss: ScalarLoss,
    theta: PyTree,
    x: Array,
    x_adv: Array,
    *,
    norm: Norm,
    eps: float | Array,
    bounds: Bounds = None,
    tol: float = 1e-9,
    max_step: float | Array | None = None,
) -> PolishedAttack:
    """The local maximum near a given attack: follows a branch as theta moves, or refines PGD.

    Steps are long where the curvature is small, so the maximum may belong to another branch: see
    ``distance``, ``gain`` and ``switched``. With ``max_step`` no ascent precedes the Newton steps,
    none of them is longer, and they end 8 times as far away: the nearest maximum is not leapt over,
    and one too far away is not reached, which the kind "unconverged" says.

    Args:
        loss: function of (x, theta) to a scalar, one example.
        theta: parameters, any pytree of real arrays.
        x: clean example of any shape.
        x_adv: where to start, same shape; projected into C(x) first.
        norm: "linf", "l2" or "l1".
        eps: radius >= 0, in the units of x.
        bounds: None, or (low, high), numbers or arrays like x: the box, which contains x.
        tol: largest relative residual that counts as converged.
        max_step: None, or the largest Euclidean length of a step, in units of x.

    Returns:
        A `PolishedAttack`.

    Raises:
        ValueError: see `optimal_attack`; also if x_adv has a different shape than x.

    Example:
        >>> import jax.numpy as jnp
        >>> loss = lambda x, theta: -jnp.sum((x - theta) ** 2)
        >>> x, start = jnp.zeros(2), jnp.array([0.7, 0.1])
        >>> attack = polish_attack(loss, jnp.full(2, 0.5), x, start, norm="linf", eps=1.0)
        >>> attack.kind, attack.x_adv.round(6).tolist()
        ('interior', [0.5, 0.5])

    References:
        formulas C.5, stages 2 and 3.
    """
    problem = make_problem(loss, theta, x, norm=norm, eps=eps, bounds=bounds)
    if jnp.shape(x_adv) != jnp.shape(x):
        raise ValueError(f"x_adv has shape {jnp.shape(x_adv)}, x has {jnp.shape(x)}; pass one of x")
    reach = None if max_step is None else jnp.asarray(max_step, float)
    return _follow(problem, jnp.asarray(x_adv, float), tol, reach, shape=jnp.shape(x))
