"""Claims on the toys: section 5.1 and appendix C of the paper, formulas G, E9, E18, E22."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxadv import theory

from .. import surfaces
from .descent import datasets
from .quadrature import POINT, RADIUS, SWISH, Plane, swish_margin, toy_plane
from .registry import IMPLIED, OURS, PRINTED, Trial, claim, join, norm, within

KINDS: tuple[Any, ...] = ("l2", "linf")


def _clipped(least: float):
    """The closed form with ``least`` for u*."""

    def exact(thetas, kind):
        middle = thetas @ POINT
        size = norm(thetas) if kind == "l2" else np.abs(thetas).sum(1)
        return swish_margin(np.clip(least, middle - RADIUS * size, middle + RADIUS * size))

    return exact


def _of_jaxadv(thetas, kind):
    with jax.enable_x64(True):
        exact = jax.jit(jax.vmap(surfaces.toy_loss("swish", kind)))
        return np.asarray(exact(jnp.asarray(thetas)))


@claim(
    "Exact attack of the swish neuron",
    "section 5.1; E22",
    OURS,
    "the paper's example has a closed form: psi(clip(u*, u0 - R, u0 + R)) is the maximum over the "
    "ball",
    sabotage={
        "u* moved by 0.1": dict(exact=_clipped(SWISH + 0.1)),
        "the lower end of the interval throughout": dict(exact=_clipped(-np.inf)),
    },
    cost=20,
)
def _closed_form(rng, count, *, exact=_of_jaxadv):
    thetas = rng.uniform(-2, 2, size=(count, 2))
    angles = np.linspace(0, 2 * np.pi, 1001)
    circle = np.stack([np.cos(angles), np.sin(angles)], 1)
    radii = np.linspace(0, 1, 31)[:, None, None]
    ball = {
        "l2": (radii * circle[None]).reshape(-1, 2),
        "linf": np.stack(np.meshgrid(*[np.linspace(-1, 1, 101)] * 2), -1).reshape(-1, 2),
    }
    trials = []
    for kind, deltas in ball.items():
        points = POINT + RADIUS * deltas
        found = np.array([swish_margin(points @ theta).max() for theta in thetas])
        value = exact(thetas, kind)
        words = lambda i, k=kind: f"{k}, theta = {thetas[i].round(4).tolist()}"
        trials.append(Trial(found, value, words))
        trials.append(Trial(value - found, np.full(count, 2e-3), words))  # and attained
    return join(*trials), None


def _corner_points(rng, count):
    thetas = np.stack([rng.uniform(1, 2, count), rng.uniform(-2, -1, count)], 1)
    thetas[0] = (2.0, -2.0)
    return thetas


def _interior(thetas) -> np.ndarray:
    """Whether a maximizer of the swish loss is inside the Linf ball: u* inside the interval."""
    reach = RADIUS * np.abs(thetas).sum(1)
    return np.abs(thetas @ POINT - SWISH) < reach


@claim(
    "The smooth corner of the swish neuron",
    "section 5.1; E9",
    IMPLIED,
    "Lemma 4 explains why the swish loss is smooth for theta_1 > 1, theta_2 < -1: its maximizers "
    "are inside the ball there (Linf; 0 where they are, 1 at a vertex)",
    "where |theta|_1 < 3.196, about two thirds of the square up to 2",
    sabotage={
        "the limit 3": dict(limit=3.0),
        "the part of the corner near the axes": dict(shrink=0.5),
    },
)
def _corner(rng, count, *, limit=-SWISH / 0.4, shrink=1.0):
    thetas = shrink * _corner_points(rng, count)
    inside = _interior(thetas)
    words = lambda i: f"theta = {thetas[i].round(3).tolist()} (inside for {inside.mean():.0%})"
    wrong = inside != (np.abs(thetas).sum(1) < limit)
    share = np.atleast_1d(np.abs(inside.mean() - (1 - (4 + SWISH / 0.4) ** 2 / 2)) * (shrink == 1))
    return within(1.0 - inside, 0.0, words), join(
        within(wrong * 1.0, 0.0, words),
        within(share, 4 / np.sqrt(count), "share of the corner"),
    )


@claim(
    "The linear model in that corner",
    "section 5.1; E9",
    IMPLIED,
    "the linear loss is not smooth for theta_1 > 1, theta_2 < -1: its slopes exceed 1e3 (Linf)",
    "no sign changes there, so it is C_thth-smooth",
    sabotage={
        "the axis theta_2 = 0 in the region": dict(high=1.0),
        "bound divided by 10": dict(scale=0.1),
    },
)
def _linear_corner(rng, count, *, high=-1.0, scale=1.0):
    a, b = (np.stack([rng.uniform(1, 2, count), rng.uniform(-2, high, count)], 1) for _ in range(2))
    b[::2] = a[::2] + 1e-4 * (b[::2] - a[::2])
    if high > 0:
        a[0], b[0] = (1.5, -1e-6), (1.5, 1e-6)
    gradients = []
    for t in (a, b):
        margin = t @ POINT - RADIUS * np.abs(t).sum(1)
        gradients.append(-(POINT - RADIUS * np.sign(t)) / (1 + np.exp(margin))[:, None])
    change, step = norm(gradients[0] - gradients[1]), norm(a - b)
    slope = np.full(count, (change / step).max())
    bound = scale * np.sum((np.abs(POINT) + RADIUS) ** 2) / 4
    words = lambda i: f"a = {a[i].round(3).tolist()}, b = {b[i].round(3).tolist()}"
    printed = Trial(np.full(count, 1e3), slope, lambda i: "largest slope on the right")
    return printed, Trial(change, bound * step, words)


@claim(
    "Lemma 4 for the swish neuron",
    "section 5.1; E9",
    IMPLIED,
    "interior maximizers of the swish neuron satisfy Lemma 4: -H >= c, say 1e-6",
    "never, as H has rank 1, and they fill a segment",
    sabotage={
        "a well that makes the loss concave": dict(well=1.0),
        "points off the segment": dict(off=0.1),
    },
)
def _rank(rng, count, *, well=0.0, off=0.0):
    thetas = rng.uniform(-2, 2, size=(3 * count, 2))
    thetas = thetas[_interior(thetas)][:count]
    size = norm(thetas)
    # delta with theta^T (x + delta) = u*, and steps along the segment of such points.
    delta = ((SWISH - thetas @ POINT) / size**2)[:, None] * thetas
    along = np.stack([-thetas[:, 1], thetas[:, 0]], 1) / size[:, None]
    steps = rng.uniform(-1, 1, size=(len(thetas), 1)) * along + off * thetas
    ends = POINT + delta + steps
    spread = np.abs(swish_margin(np.sum(thetas * ends, 1)) - swish_margin(SWISH))
    bend = -0.21781 * _sigmoid(-swish_of(SWISH))  # psi'' at u*, where psi' = 0
    hessians = bend * thetas[:, :, None] * thetas[:, None, :] - well * np.eye(2)
    lowest = np.linalg.eigvalsh(-hessians)[:, 0]
    words = lambda i: f"theta = {thetas[i].round(3).tolist()}, eigenvalue of -H on the right"
    printed = Trial(np.full(len(thetas), 1e-6), np.maximum(lowest, 0), words)
    plain = lambda i: f"theta = {thetas[i].round(3).tolist()}"
    return printed, join(within(np.abs(lowest), 1e-12, plain), within(spread, 1e-12, plain))


def _sigmoid(t):
    return 1 / (1 + np.exp(-t))


def swish_of(u):
    """The neuron, u s(u)."""
    return u * _sigmoid(u)


def _pgd(theta, kind):
    return theory.toy_pgd(theta, norm=kind, num_steps=10, step_size=0.15, keep_best=False)


@claim(
    "(MON) for exact attacks",
    "formulas A.9",
    OURS,
    "minus the monotonicity quotient of the swish loss is at most w",
    sabotage={"attacks by PGD-10": dict(attack=_pgd), "w halved": dict(scale=0.5)},
)
def _monotone(rng, count, *, attack=None, scale=1.0):
    thetas = rng.uniform(-2, 2, size=(2, count, 2))
    first = rng.uniform(0.9, 1.7, size=count // 4)  # across an axis, where PGD oscillates
    height = 10.0 ** rng.uniform(-4, -2, size=count // 4)
    thetas[0, : count // 4] = np.stack([first, height], 1)
    thetas[1, : count // 4] = np.stack([first, -height], 1)
    near = slice(count // 4, 3 * count // 4)  # where the quotient is close to the curvature
    angle = rng.uniform(0, 2 * np.pi, size=thetas[0, near].shape[0])
    moved = thetas[0, near] + 0.3 * np.stack([np.cos(angle), np.sin(angle)], 1)
    thetas[1, near] = np.clip(moved, -2, 2)
    trials = []
    for kind in KINDS:

        def gradient(theta, kind=kind):
            delta = None if attack is None else attack(theta, kind)
            return theory.toy_gradient(theta, model="swish", norm=kind, delta=delta)

        with jax.enable_x64(True):
            a, b = (np.asarray(jax.jit(jax.vmap(gradient))(jnp.asarray(t))) for t in thetas)
        step = thetas[0] - thetas[1]
        quotient = -np.sum((a - b) * step, 1) / np.sum(step**2, 1)
        bound = scale * float(theory.toy_weak_convexity(norm=kind))
        trials.append(within(np.maximum(quotient, 0), bound, lambda i, k=kind: f"pair {i}, {k}"))
    return join(*trials), None


def _largest_slope(rng, kind: str, gamma: float, count: int) -> float:
    """Largest slope of grad F on [-2, 2]^2, from differences of F (linear model)."""
    plane = toy_plane("linear", kind, gamma)
    axis = np.linspace(-1.95, 1.95, 40)  # jittered by its spacing
    places = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    places = places + rng.uniform(-0.05, 0.05, size=places.shape)
    places = np.concatenate([places, rng.uniform(-2, 2, size=(count, 2))])
    h = 2e-3 / np.sqrt(gamma)
    hessian = [
        (plane.gradient(places + h * e) - plane.gradient(places - h * e)) / (2 * h)
        for e in np.eye(2)
    ]
    return float(np.linalg.norm(np.stack(hessian, 2), 2, axis=(1, 2)).max())


@claim(
    "Smoothness of -F, L2 and Linf",
    "section 5.1",
    PRINTED,
    "the smoothnesses of -F under L2 and Linf are almost the same: the largest slopes of the "
    "gradient within a fifth (gamma = 0.5, 1, 5), the surfaces at gamma = 1 within 0.2",
    sabotage={
        "hardly any smoothing, gamma = 60": dict(gammas=(60.0,)),
        "the swish neuron against the linear model": dict(models=("linear", "swish")),
    },
    cost=40,
)
def _alike(rng, count, *, gammas=(0.5, 1.0, 5.0), models=("linear", "linear")):
    ratios = []
    for gamma in gammas:
        slopes = [_largest_slope(rng, kind, gamma, count) for kind in KINDS]
        ratios.append(abs(slopes[0] / slopes[1] - 1))
    axis = np.linspace(-2, 2, 41)
    places = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    surfaces_ = [toy_plane(m, k, 1.0)(places) for m, k in zip(models, KINDS, strict=True)]
    apart = surfaces.deviation(surfaces_[0].reshape(41, 41), surfaces_[1].reshape(41, 41))
    words = lambda i: f"gamma = {gammas[i]:g}, relative difference of the slopes"
    return join(
        within(np.array(ratios), 0.2, words),
        within(np.array([apart]), 0.2, "gamma = 1, deviation of the surfaces"),
    ), None


@claim(
    "Optima of -F",
    "appendix C; E18",
    PRINTED,
    "the optimal points of -F are those of L on [-2, 2]^2 (distance at most one cell of the grid)",
    sabotage={"hardly any smoothing, gamma = 1e4": dict(gammas=(1e4,))},
    cost=500,
)
def _optima(rng, count, *, gammas=(1.0, 10.0)):
    axis = np.linspace(-2, 2, 41)
    places = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    cases, distances = [], []
    for index in range(max(count // 4, 2)):
        points, labels = datasets(rng, 1, 100)
        for kind in KINDS:

            def loss(s, t, kind=kind, points=points, labels=labels):
                flat = np.stack([s.ravel(), t.ravel()], 1)
                size = norm(flat) if kind == "l2" else np.abs(flat).sum(1)
                total = np.zeros(len(flat))
                for x, y in zip(points[0], labels[0], strict=True):
                    total += np.logaddexp(0, -y * (flat @ x) + 0.6 * size)
                return (total / len(labels[0])).reshape(s.shape)

            best = places[loss(*places.T).argmin()]
            for gamma in gammas:
                smooth = Plane(loss, gamma) if gamma < 100 else lambda t, f=loss: -f(*t.T)
                place = places[smooth(places).argmax()]
                cases.append((index, kind, gamma, best.round(2).tolist(), place.round(2).tolist()))
                distances.append(norm(best - place))
    words = lambda i: "data set {}, {}, gamma = {:g}: argmin L {}, argmin -F {}".format(*cases[i])
    return within(np.array(distances), 0.1 * np.sqrt(2) + 1e-12, words), None
