r"""Optimal attacks to machine precision, for L2, Linf and L1 balls with or without a box.

Three stages per start (docs/formulas.md C.5), all starts at once: ascent with steps of decreasing
length; monotone projected-gradient ascent with backtracking; Newton steps on the KKT system of the
current active set, with each Hessian eigenvalue replaced by its absolute value, accepted if the
loss grows or the residual halves. The best start wins and comes with its certificates.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ...checks import check_count
from ...types import Array, Key, Norm, PyTree
from .._float64 import in_float64
from .active import ActiveSet, active_set
from .certificates import (
    Certificates,
    analyse,
    gradient_scale,
    kind_name,
    relative_residual,
)
from .feasible import Bounds, Feasible, l2_norm
from .problem import FlatLoss, Problem, ScalarLoss, make_problem

_PGD_STEPS, _ASCENT_STEPS, _NEWTON_STEPS = 30, 100, 60
_FINE = 1e-14  # relative residual that cannot be improved
_LENGTHS = (1.0, 0.5, 0.1, 0.01)
_VALLEY_POINTS = 33
_VERTEX_COORDINATES = 16  # of the L1 ball, whose vertices are starts


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
    """

    x_adv: Array
    value: Array
    kind_code: Array
    certificates: Certificates
    value_gap: Array

    @property
    def kind(self) -> Any:
        """Name of the kind, or an array of names for a batch."""
        return kind_name(self.kind_code)


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


def _ascend(loss: FlatLoss, feasible: Feasible, z: Array) -> Array:
    """Stage 1: steepest ascent with decreasing steps; the best iterate."""
    slope = jax.value_and_grad(loss)

    def direction(g: Array) -> Array:
        if feasible.norm == "linf":
            return jnp.sign(g)
        length = l2_norm(g)
        return g / jnp.where(length > 0, length, 1.0)

    def step(carry: tuple, size: Array) -> tuple:
        z, best, best_value = carry
        value, g = slope(z)
        better = value > best_value
        best, best_value = jnp.where(better, z, best), jnp.where(better, value, best_value)
        z = feasible.project(z + size * feasible.eps * direction(g))
        return (z, best, best_value), None

    sizes = jnp.geomspace(1.0, 0.01, _PGD_STEPS, dtype=z.dtype)
    start = (z, z, jnp.asarray(-jnp.inf, z.dtype))
    (last, best, best_value), _ = jax.lax.scan(step, start, sizes)
    return jnp.where(loss(last) > best_value, last, best)


def climb(loss: FlatLoss, feasible: Feasible, z: Array, max_steps: int = _ASCENT_STEPS) -> Array:
    """Stage 2: monotone projected-gradient ascent."""
    slope = jax.value_and_grad(loss)

    def unit(g: Array) -> Array:
        length = l2_norm(g)
        return feasible.eps / jnp.where(length > 0, length, 1.0)

    def going(state: tuple) -> Array:
        z, _, g, step, count = state
        scale = jnp.where(l2_norm(g) > 0, l2_norm(g), 1.0)
        moving = relative_residual(feasible, z, g, scale) > 1e-6
        return moving & (count < max_steps) & (step > 1e-12 * unit(g))

    def body(state: tuple) -> tuple:
        z, value, g, step, count = state
        new = feasible.project(z + step * g)
        new_value, new_g = slope(new)
        good = new_value >= value
        z, value, g = (jnp.where(good, a, b) for a, b in ((new, z), (new_value, value), (new_g, g)))
        return z, value, g, jnp.where(good, 1.2 * step, 0.5 * step), count + 1

    value, g = slope(z)
    return jax.lax.while_loop(going, body, (z, value, g, unit(g), jnp.array(0)))[0]


def _newton_step(active: ActiveSet, g: Array, hessian: Array) -> Array:
    """Newton's step on the tangent space, each eigenvalue replaced by its absolute value."""
    projector = active.projector
    inside = projector @ hessian @ projector
    inside = active.pull * projector - 0.5 * (inside + inside.T)
    values, vectors = jnp.linalg.eigh(inside)
    magnitudes = jnp.abs(values)
    # No step along directions without curvature, including those outside the tangent space.
    usable = magnitudes > 1e-13 * jnp.max(magnitudes)
    coordinates = (vectors.T @ active.project(g)) / jnp.where(usable, magnitudes, 1.0)
    return active.project(vectors @ jnp.where(usable, coordinates, 0.0))


def candidates(
    feasible: Feasible, active: ActiveSet, z: Array, g: Array, step: Array, scale: Array
) -> Array:
    """Feasible points along a tangential step, which stay on the sphere, and along the gradient."""
    length = l2_norm(step)
    step = step * jnp.minimum(1.0, feasible.eps / jnp.where(length > 0, length, 1.0))
    r = z - feasible.x
    held = jnp.where(active.fixed, r, 0.0)
    radius = jnp.sqrt(jnp.maximum(feasible.eps**2 - jnp.sum(held**2), 0.0))

    def retract(size: Array) -> Array:
        moved = jnp.where(active.fixed, 0.0, r + size * step)
        if feasible.norm == "l2":
            norm = l2_norm(moved)
            on_sphere = moved * (radius / jnp.where(norm > 0, norm, 1.0))
            moved = jnp.where(active.on_ball, on_sphere, moved)
        return feasible.project(feasible.x + held + moved)

    climb = lambda size: feasible.project(z + size * feasible.eps / scale * g)
    sizes = jnp.asarray(_LENGTHS, z.dtype)
    return jnp.concatenate([jax.vmap(retract)(sizes), jax.vmap(climb)(sizes)])


def choose(
    residual: Array, value: Array, residuals: Array, values: Array, noise: Array
) -> tuple[Array, Array]:
    """Chooses a candidate, if any: one that halves the residual, or the highest."""
    halves = (residuals <= 0.5 * residual) & (values >= value - noise)
    by_residual = jnp.argmin(jnp.where(halves, residuals, jnp.inf))
    by_value = jnp.argmax(jnp.where(jnp.isfinite(values), values, -jnp.inf))
    best = jnp.where(jnp.any(halves), by_residual, by_value)
    return best, jnp.any(halves) | jnp.any(values > value + noise)


def _polish(loss: FlatLoss, feasible: Feasible, z: Array) -> tuple[Array, Array, Array]:
    """Stage 3: Newton on the KKT system, safeguarded; returns x', its loss and its residual."""
    slope = jax.value_and_grad(loss)
    hessian_fn = jax.jacfwd(jax.grad(loss))

    def going(state: tuple) -> Array:
        _, _, _, residual, stalled, count = state
        return (residual > _FINE) & ~stalled & (count < _NEWTON_STEPS)

    def body(state: tuple) -> tuple:
        z, value, g, residual, _, count = state
        hessian = hessian_fn(z)
        scale = gradient_scale(feasible, g, hessian)
        residual = relative_residual(feasible, z, g, scale)
        active = active_set(feasible, z, g)
        step = _newton_step(active, g, hessian)
        points = candidates(feasible, active, z, g, step, scale)
        values, slopes = jax.vmap(slope)(points)
        residuals = jax.vmap(lambda z, g: relative_residual(feasible, z, g, scale))(points, slopes)
        # A difference of losses below this is rounding.
        noise = 1e-14 * (jnp.abs(value) + scale * feasible.eps)
        best, good = choose(residual, value, residuals, values, noise)
        z, value, g, residual = (
            jnp.where(good, new[best], old)
            for new, old in ((points, z), (values, value), (slopes, g), (residuals, residual))
        )
        return z, value, g, residual, ~good, count + 1

    value, g = slope(z)
    start = (z, value, g, jnp.asarray(jnp.inf, z.dtype), jnp.array(False), 0)
    z, value, _, residual, _, _ = jax.lax.while_loop(going, body, start)
    return z, value, residual


def _starts(key: Key, feasible: Feasible, g: Array, num_restarts: int) -> Array:
    """X itself, the ends of the ball along its gradient, and random points.

    Most maxima over an L1 ball are on its vertices and edges, which random points inside rarely
    lead to: it gets its vertices, and random points of its edges, too.
    """
    direction_key, radius_key = jax.random.split(key)
    shape = (num_restarts, feasible.x.shape[0])
    directions = jax.random.normal(direction_key, shape, feasible.x.dtype)
    if feasible.norm == "linf":
        lengths = jnp.max(jnp.abs(directions), axis=1, keepdims=True)
    elif feasible.norm == "l2":
        lengths = jnp.sqrt(jnp.sum(directions**2, axis=1, keepdims=True))
    else:
        lengths = jnp.sum(jnp.abs(directions), axis=1, keepdims=True)
    radii = jax.random.uniform(radius_key, (num_restarts, 1), feasible.x.dtype)
    offsets = feasible.eps * radii * directions / lengths
    if feasible.norm == "l1":
        offsets = jnp.concatenate([offsets, feasible.eps * _corners(key, g, num_restarts)])
    points = jax.vmap(feasible.project)(feasible.x[None, :] + offsets)
    return jnp.concatenate(
        [jnp.stack([feasible.x, feasible.farthest(g), feasible.farthest(-g)]), points]
    )


def _corners(key: Key, g: Array, num_edges: int) -> Array:
    """Vertices of the unit L1 ball along the steepest coordinates, and points of its edges."""
    edge_key, sign_key, share_key = jax.random.split(jax.random.fold_in(key, 1), 3)
    size = g.shape[0]
    steepest = jnp.argsort(-jnp.abs(g))[:_VERTEX_COORDINATES]
    units = jnp.eye(size, dtype=g.dtype)
    vertices = jnp.concatenate([units[steepest], -units[steepest]])
    keys = jax.random.split(edge_key, num_edges)
    pairs = jax.vmap(lambda k: jax.random.permutation(k, size)[:2])(keys)
    shares = jax.random.uniform(share_key, (num_edges, 1), g.dtype)
    signs = jax.random.rademacher(sign_key, (num_edges, 2), g.dtype)
    ends = units[pairs] * signs[:, :, None]
    edges = shares * ends[:, 0] + (1 - shares) * ends[:, -1]
    return jnp.concatenate([vertices, edges])


def search(
    key: Key, problem: Problem, shape: tuple[int, ...], num_restarts: int
) -> tuple[Array, Array]:
    """The best local maximum over all starts (flat), and the gap to the second best."""
    feasible, flat_loss = problem.feasible, problem.flat_loss(shape)
    loss = lambda z: flat_loss(z, problem.theta)
    starts = _starts(key, feasible, jax.grad(loss)(feasible.x), num_restarts)
    run = lambda z: _polish(loss, feasible, climb(loss, feasible, _ascend(loss, feasible, z)))
    points, values, residuals = jax.vmap(run)(starts)
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
    problem: Problem, x_adv: Array, tol: float | Array, *, shape: tuple[int, ...]
) -> PolishedAttack:
    feasible, flat_loss = problem.feasible, problem.flat_loss(shape)
    loss = lambda z: flat_loss(z, problem.theta)
    start = feasible.project(x_adv.reshape(-1))
    z, value, _ = _polish(loss, feasible, climb(loss, feasible, start))
    return PolishedAttack(
        *_report(problem, shape, z, tol, jnp.asarray(jnp.inf, z.dtype)),
        gain=value - loss(start),
        distance=l2_norm(z - start),
        switched=_falls_on_the_way(loss, feasible, start, z),
    )


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
) -> OptimalAttack:
    r"""The attack that maximizes the loss over :math:`C(x)`, with certificates, in float64.

    Runs from x, from both ends of the ball along the gradient there and from ``num_restarts``
    random points; for L1 also from the ball's vertices (those of the 16 steepest coordinates) and
    from ``num_restarts`` random points of its edges. On smooth losses the relative residual ends
    near 1e-14. The certificates prove a *local* maximum. Only for a loss that is concave in x do
    they prove a global one (``certificates.gap`` bounds the error); otherwise more starts make it
    more likely.

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

    Returns:
        An `OptimalAttack`.

    Raises:
        ValueError: unknown norm, negative radius, x outside the bounds, a loss that is not a
            scalar or not float64, a leaf of theta that is not real.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> loss = lambda x, theta: -jnp.sum((x - theta) ** 2)
        >>> attack = optimal_attack(
        ...     jax.random.key(0), loss, jnp.array([3.0, 4.0]), jnp.zeros(2), norm="l2", eps=1.0
        ... )
        >>> attack.kind, attack.x_adv.round(6).tolist()
        ('sphere', [0.6, 0.8])

    References:
        formulas C.5.
    """
    check_count("num_restarts", num_restarts, 0)
    problem = make_problem(loss, theta, x, norm=norm, eps=eps, bounds=bounds)
    return _find(key, problem, tol, shape=jnp.shape(x), num_restarts=num_restarts)


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
) -> PolishedAttack:
    """The local maximum near a given attack: follows a branch as theta moves, or refines PGD.

    Steps are long where the curvature is small, so the maximum may belong to another branch: see
    ``distance``, ``gain`` and ``switched``.

    Args:
        loss: function of (x, theta) to a scalar, one example.
        theta: parameters, any pytree of real arrays.
        x: clean example of any shape.
        x_adv: where to start, same shape; projected into C(x) first.
        norm: "linf", "l2" or "l1".
        eps: radius >= 0, in the units of x.
        bounds: None, or (low, high), numbers or arrays like x: the box, which contains x.
        tol: largest relative residual that counts as converged.

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
    return _follow(problem, jnp.asarray(x_adv, float), tol, shape=jnp.shape(x))
