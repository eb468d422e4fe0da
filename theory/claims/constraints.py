"""Claims on constraints: projections, Linf and the box, ReLU; formulas C.3, C.4, E13, E14, E21."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxadv import balls

from .networks import motion_trial
from .registry import Trial, claim, norm, pair, unit

EPS = 0.3
KINDS = ("linf", "l2", "l1")


@functools.cache
def _projection(kind: str):
    function = lambda p, x: balls.project(p, x, norm=kind, eps=EPS, exact=True)  # pyright: ignore
    return jax.jit(function)


def _project(points: np.ndarray, images: np.ndarray, kind: str) -> np.ndarray:
    with jax.enable_x64(True):
        return np.asarray(_projection(kind)(jnp.asarray(points), jnp.asarray(images)))


@claim(
    "Projection",
    "section 3; E13",
    "the projection of PGD is not continuous: it moves points by 1e-3 or more that are 1e-9 apart",
    "projections onto convex sets (L1, L2, Linf, with the box) are 1-Lipschitz",
)
def _continuous(rng, count):
    images = rng.uniform(size=(count, 4))
    a = images + rng.normal(size=(count, 4))
    apart = 10.0 ** rng.uniform(-9, 0, size=(count, 1))
    apart[::4] = 1e-9
    b = a + apart * unit(rng.normal(size=(count, 4)))
    moved = np.concatenate([norm(_project(a, images, k) - _project(b, images, k)) for k in KINDS])
    step = np.tile(norm(a - b), len(KINDS))
    near = np.flatnonzero(step < 2e-9)
    words = lambda i: f"{KINDS[near[i] // count]}: points 1e-9 apart move by {moved[near[i]]:.1e}"
    corrected = Trial(moved, step + 1e-14, lambda i: f"{KINDS[i // count]}, pair {i % count}")
    return Trial(np.full(len(near), 1e-3), moved[near], words), corrected


def _concave(rng, count):
    """Strongly concave quadratics -(x - M theta)^T Q (x - M theta)/2 and pairs of parameters."""
    basis = np.linalg.qr(rng.normal(size=(count, 4, 4)))[0]
    values = rng.uniform(0.5, 3, size=(count, 4))
    q = np.einsum("nij,nj,nkj->nik", basis, values, basis)
    m = rng.normal(size=(count, 4, 3))
    images = rng.uniform(size=(count, 4))
    a = rng.normal(size=(count, 3))
    b = a + 10.0 ** rng.uniform(-3, 0.5, size=(count, 1)) * unit(rng.normal(size=(count, 3)))
    return q, values, m, images, a, b


@functools.cache
def _maximizer(kind: str):
    def run(q, centre, images, step):
        def ascend(state, _):
            x, momentum = state
            slope = jnp.einsum("nij,nj->ni", q, momentum - centre)
            new = balls.project(
                momentum - step[:, None] * slope,
                images,
                norm=kind,  # pyright: ignore[reportArgumentType]
                eps=EPS,
                exact=True,
            )
            return (new, new + 0.4 * (new - x)), None

        return jax.lax.scan(ascend, (images, images), length=200)[0][0]

    return jax.jit(run)


def _attacks(q, largest, centres, images, kind: str) -> np.ndarray:
    with jax.enable_x64(True):
        return np.asarray(_maximizer(kind)(q, centres, images, 1 / largest))


@claim(
    "Lipschitz attack under any convex constraint",
    "formulas C.3 (U)",
    "|x'(a) - x'(b)| <= (C_thx/c) |a - b| if -H >= c I (L1, L2, Linf, with the box)",
)
def _strongly_concave(rng, count):
    q, values, m, images, a, b = _concave(rng, min(count, 500))
    q = np.where(np.arange(len(q))[:, None, None] % 2, q, np.eye(4))  # Q = I: tight
    values = np.where(np.arange(len(q))[:, None] % 2, values, 1.0)
    cross = np.linalg.norm(np.einsum("nij,njk->nik", q, m), 2, axis=(1, 2))
    bound = cross / values.min(1) * norm(a - b)
    moved = []
    for kind in KINDS:
        centres = [np.einsum("nij,nj->ni", m, t) for t in (a, b)]
        ends = [_attacks(q, values.max(1), c, images, kind) for c in centres]
        moved.append(norm(ends[0] - ends[1]))
    words = lambda i: f"{KINDS[i // len(a)]}, pair {i % len(a)}"
    return Trial(np.concatenate(moved), np.tile(bound, len(KINDS)) + 1e-10, words), None


@claim(
    "Linf cannot be Lipschitz",
    "section 3.2; E14",
    "with an Linf constraint slopes of the attack are unbounded, 1e3 or more for some pair",
    "not on strongly concave losses: C_thx/c bounds them across all changes of the active set",
)
def _linf(rng, count):
    q, values, m, images, a, b = _concave(rng, min(count, 500))
    centres = [np.einsum("nij,nj->ni", m, t) for t in (a, b)]
    ends = [_attacks(q, values.max(1), c, images, "linf") for c in centres]
    moved, step = norm(ends[0] - ends[1]), norm(a - b)
    slope = (moved / step).max()
    cross = np.linalg.norm(np.einsum("nij,njk->nik", q, m), 2, axis=(1, 2))
    printed = Trial(np.array([1e3]), np.array([slope]), lambda i: "largest slope on the right")
    return printed, Trial(moved, cross / values.min(1) * step + 1e-10, pair(a, b))


@claim(
    "Regularised attack",
    "formulas C.3 (U3)",
    "maximizing l - (tau/2)|delta|^2 gives a C_thx/(tau - rho)-Lipschitz attack under Linf where "
    "the exact one jumps, and a loss at most (tau/2) d eps^2 below (linear model, box-free)",
)
def _regularised(rng, count):
    tau = 10.0 ** rng.uniform(-2, 1, size=(count, 1))
    a, b = rng.normal(size=(2, count, 4))
    b[::2] = a[::2] + 1e-3 * b[::2]
    attack = lambda t: np.clip(t / tau, -EPS, EPS)  # loss theta^T x: C_thx = 1, rho = 0
    moved = norm(attack(a) - attack(b))
    missing = EPS * np.abs(a).sum(1) - np.sum(a * attack(a), 1)
    measured = np.concatenate([moved, missing])
    bound = np.concatenate([norm(a - b) / tau[:, 0], tau[:, 0] / 2 * 4 * EPS**2])
    both = lambda v: np.concatenate([v, v])
    return Trial(measured, bound, pair(both(a), both(b))), None


@claim(
    "Linf attacks with a fixed active set",
    "formulas C.4; E14",
    "the attack moves by at most |B_F|/min(-H_FF) |dtheta|, at a vertex not at all (networks)",
)
def _active(rng, count):
    del rng, count
    return motion_trial("linf", "sharp_bound", "face", "vertex", "interior"), None


@claim(
    "Stability of a vertex",
    "formulas C.4",
    "an Linf vertex stays while |dtheta| < min_i |g_i|/|B_i| (l = x^T M theta; flips)",
)
def _vertex(rng, count):
    m, theta = rng.normal(size=(count, 4, 3)), rng.normal(size=(count, 3))
    g = np.einsum("nij,nj->ni", m, theta)
    distances = np.abs(g) / norm(m)
    row = np.take_along_axis(m, distances.argmin(1)[:, None, None], 1)[:, 0]
    toward = -np.sign(np.take_along_axis(g, distances.argmin(1)[:, None], 1)) * unit(row)
    flips = []
    for factor in (1 - 1e-9, 1 + 1e-9):
        moved = theta + factor * distances.min(1)[:, None] * toward
        flips.append(np.sum(np.sign(np.einsum("nij,nj->ni", m, moved)) != np.sign(g), 1))
    # Inside the radius no flip; just outside it one: the radius is not too small either.
    measured = np.concatenate([flips[0], np.abs(flips[1] - 1)]).astype(float)
    return Trial(measured, np.zeros(2 * count), lambda i: f"instance {i % count}"), None


@claim(
    "A coordinate that switches",
    "formulas C.4; E14",
    "under Linf the attack jumps by 2 eps wherever g_i changes sign",
    "only if H_ii >= 0; if H_ii = -h < 0 it moves continuously, with slope 1/h",
)
def _switch(rng, count):
    # l = theta x - h x^2/2 on [-eps, eps]: for h > 0 x' = clip(theta/h), otherwise an end.
    h = rng.uniform(0.2, 2, size=count) * np.where(np.arange(count) % 2, 1.0, -1.0)
    theta = np.full(count, 1e-9)

    def attack(t):
        ends = EPS * np.where(t >= 0, 1.0, -1.0)
        inside = np.clip(t / np.where(h > 0, h, 1.0), -EPS, EPS)
        points = np.stack([ends, -ends, np.where(h > 0, inside, ends)])
        loss = t * points - h * points**2 / 2
        return np.take_along_axis(points, loss.argmax(0)[None], 0)[0]

    jump = np.abs(attack(theta) - attack(-theta))
    words = lambda i: f"H_ii = {-h[i]:.3f}, jump {jump[i]:.2e}, distance"
    expected = np.where(h > 0, 2 * theta / np.abs(h), 2 * EPS)
    rounding = np.full(count, 1e-12)
    return (
        Trial(np.abs(jump - 2 * EPS), rounding, words),
        Trial(np.abs(jump - expected), rounding, words),
    )


def _mlp(activation):
    def loss(x, w1, w2):
        logits = w2 @ activation(w1 @ x)
        return jax.nn.logsumexp(logits) - logits[0]

    return loss


@functools.cache
def _derivatives(name: str):
    loss = _mlp({"relu": jax.nn.relu, "tanh": jnp.tanh}[name])
    return tuple(jax.jit(jax.vmap(f(loss))) for f in (jax.grad, jax.hessian))


def _weights(rng, count):
    return rng.normal(size=(count, 8, 3)), rng.normal(size=(count, 3, 8))


@claim(
    "Smooth networks",
    "Assumption 1; E21",
    "grad_x l of a ReLU network is Lipschitz, say with constant 1e4",
    "that of a network with smooth activations is (tanh, constant from the weights)",
)
def _relu(rng, count):
    w1, w2 = _weights(rng, count)
    x = rng.normal(size=(count, 3))
    row = w1[:, 0]
    x -= (np.sum(x * row, 1) / np.sum(row**2, 1))[:, None] * row  # onto the kink of unit 0
    ends = [x + s * 1e-9 * unit(row) for s in (1, -1)]
    change = {}
    with jax.enable_x64(True):
        for name in ("relu", "tanh"):
            gradient = _derivatives(name)[0]
            change[name] = norm(gradient(ends[0], w1, w2) - gradient(ends[1], w1, w2))
    step = norm(ends[0] - ends[1])
    # |H| <= |J|^2/2 + |w1|^2 max|tanh''| sum_k |r_k||w2_k|, with |r|_2 <= sqrt 2.
    sizes = [np.linalg.norm(w, 2, axis=(1, 2)) for w in (w1, w2)]
    constant = (sizes[0] * sizes[1]) ** 2 / 2 + 0.77 * sizes[0] ** 2 * sizes[1] * np.sqrt(2)
    words = lambda i: f"network {i}, two sides of a kink, {step[i]:.0e} apart"
    rounding = 1e-13
    return (
        Trial(change["relu"], 1e4 * step, words),
        Trial(change["tanh"], constant * step + rounding, words),
    )


@claim(
    "Lemma 4 for ReLU networks",
    "Lemma 4; E21",
    "a ReLU network with cross-entropy has smallest eigenvalue of H >= 0 where H exists: no "
    "interior attack meets the lemma's hypothesis",
)
def _never(rng, count):
    w1, w2 = _weights(rng, count)
    with jax.enable_x64(True):
        hessians = np.asarray(_derivatives("relu")[1](rng.normal(size=(count, 3)), w1, w2))
    lowest = np.linalg.eigvalsh(hessians)[:, 0]
    return Trial(np.maximum(-lowest, 0), np.full(count, 1e-10), lambda i: f"network {i}"), None
