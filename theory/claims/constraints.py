"""Claims on constraints: projections, Linf and the box, ReLU; formulas C.3, C.4, E13, E14, E21."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxadv import balls

from .registry import IMPLIED, OURS, PRINTED, Trial, claim, join, norm, pair, unit, within

EPS = 0.3
KINDS = ("linf", "l2", "l1")


@functools.cache
def _projection(kind: str):
    function = lambda p, x: balls.project(p, x, norm=kind, eps=EPS, exact=True)  # pyright: ignore
    return jax.jit(function)


def _project(points: np.ndarray, images: np.ndarray, kind: str) -> np.ndarray:
    with jax.enable_x64(True):
        return np.asarray(_projection(kind)(jnp.asarray(points), jnp.asarray(images)))


def _sign_step(points, images, kind):
    del kind
    return images + EPS * np.sign(points - images)


@claim(
    "Projection",
    "section 3; E13",
    PRINTED,
    "the projection of PGD is not continuous: it moves points by 1e-3 or more that are 1e-9 apart",
    "projections onto convex sets (L1, L2, Linf, with the box) are 1-Lipschitz",
    sabotage={
        "the sign, which is what jumps": dict(project=_sign_step),
        "a projection from twice as far": dict(scale=2.0),
    },
)
def _continuous(rng, count, *, project=_project, scale=1.0):
    images = rng.uniform(size=(count, 4))
    a = images + 0.3 * rng.normal(size=(count, 4))
    apart = 10.0 ** rng.uniform(-9, 0, size=(count, 1))
    apart[::4] = 1e-9
    b = a + apart * unit(rng.normal(size=(count, 4)))
    ends = [[project(scale * p, images, k) for p in (a, b)] for k in KINDS]
    moved = np.concatenate([norm(first - second) for first, second in ends])
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


def _vertices(q, largest, centres, images, kind: str) -> np.ndarray:
    """Where the gradient of a linear loss points: no maximizers of the quadratic."""
    del q, largest, kind
    return np.clip(images + EPS * np.sign(centres), 0, 1)


@claim(
    "Lipschitz attack under any convex constraint",
    "formulas C.3 (U)",
    OURS,
    "|x'(a) - x'(b)| <= (C_thx/c) |a - b| if -H >= c I (L1, L2, Linf, with the box)",
    sabotage={
        "bound halved": dict(scale=0.5),
        "the largest curvature for the smallest": dict(choose=np.max),
        "signs of the gradient for the attack": dict(attacks=_vertices),
    },
    cost=2,
)
def _strongly_concave(rng, count, *, scale=1.0, choose=np.min, attacks=_attacks):
    q, values, m, images, a, b = _concave(rng, count)
    q = np.where(np.arange(len(q))[:, None, None] % 2, q, np.eye(4))  # Q = I: tight
    values = np.where(np.arange(len(q))[:, None] % 2, values, 1.0)
    cross = np.linalg.norm(np.einsum("nij,njk->nik", q, m), 2, axis=(1, 2))
    bound = scale * cross / choose(values, axis=1) * norm(a - b) + 1e-10
    trials = []
    for kind in KINDS:
        centres = [np.einsum("nij,nj->ni", m, t) for t in (a, b)]
        ends = [attacks(q, values.max(1), c, images, kind) for c in centres]
        trials.append(Trial(norm(ends[0] - ends[1]), bound, lambda i, k=kind: f"{k}, pair {i}"))
    return join(*trials), None


@claim(
    "Linf attacks across active sets",
    "section 3.2; E14",
    OURS,
    "C_thx/c bounds slopes of the Linf attack on strongly concave losses also between pairs whose "
    "active sets differ, although the norm has no derivative there",
    sabotage={
        "a linear loss, whose attack is a vertex": dict(attacks=_vertices),
        "bound divided by 3": dict(scale=1 / 3),
    },
    cost=2,
)
def _linf(rng, count, *, attacks=_attacks, scale=1.0):
    q, values, m, images, a, b = _concave(rng, count)
    centres = [np.einsum("nij,nj->ni", m, t) for t in (a, b)]
    ends = [attacks(q, values.max(1), c, images, "linf") for c in centres]
    low, high = np.maximum(images - EPS, 0), np.minimum(images + EPS, 1)
    sets = [(e >= high - 1e-9) * 1 - (e <= low + 1e-9) * 1 for e in ends]
    keep = np.any(sets[0] != sets[1], axis=1)
    cross = np.linalg.norm(np.einsum("nij,njk->nik", q, m), 2, axis=(1, 2))
    bound = scale * cross / values.min(1) * norm(a - b) + 1e-10
    return Trial(norm(ends[0] - ends[1])[keep], bound[keep], pair(a[keep], b[keep])), None


@claim(
    "Regularized attack",
    "formulas C.3 (U3)",
    OURS,
    "maximizing l - (tau/2)|delta|^2 gives a C_thx/(tau - rho)-Lipschitz attack under Linf where "
    "the exact one jumps, and a loss at most (tau/2) d eps^2 below (linear model, box-free)",
    sabotage={
        "bounds 1 % smaller": dict(scale=0.99),
        "the exact attack": dict(weight=1e-9),
    },
)
def _regularized(rng, count, *, scale=1.0, weight=1.0):
    tau = 10.0 ** rng.uniform(-2, 1, size=(count, 1))
    a, b = rng.normal(size=(2, count, 4))
    b[::2] = a[::2] + 1e-3 * b[::2]
    attack = lambda t: np.clip(t / (weight * tau), -EPS, EPS)  # loss theta^T x: C_thx = 1, rho = 0
    moved = norm(attack(a) - attack(b))
    missing = EPS * np.abs(a).sum(1) - np.sum(a * attack(a), 1)
    return join(
        Trial(moved, scale * norm(a - b) / tau[:, 0], pair(a, b)),
        Trial(missing, scale * tau[:, 0] / 2 * 4 * EPS**2, pair(a, b)),
    ), None


@claim(
    "Stability of a vertex",
    "formulas C.4",
    OURS,
    "an Linf vertex stays while |dtheta| < min_i |g_i|/|B_i|, and no longer (l = x^T M theta; "
    "flips)",
    sabotage={
        "a radius 1 % larger": dict(scale=1.01),
        "a radius 1 % smaller": dict(scale=0.99),
        "the largest of the ratios": dict(choose=np.argmax),
    },
)
def _vertex(rng, count, *, scale=1.0, choose=np.argmin):
    m, theta = rng.normal(size=(count, 4, 3)), rng.normal(size=(count, 3))
    g = np.einsum("nij,nj->ni", m, theta)
    distances = np.abs(g) / norm(m)
    place = choose(distances, axis=1)[:, None]
    row = np.take_along_axis(m, place[..., None], 1)[:, 0]
    toward = -np.sign(np.take_along_axis(g, place, 1)) * unit(row)
    radius = scale * np.take_along_axis(distances, place, 1)
    flips = []
    for factor in (1 - 1e-9, 1 + 1e-9):
        moved = theta + factor * radius * toward
        flips.append(np.sum(np.sign(np.einsum("nij,nj->ni", m, moved)) != np.sign(g), 1))
    # Inside the radius no flip; just outside it one: the radius is not too small either.
    measured = np.concatenate([flips[0], np.abs(flips[1] - 1)]).astype(float)
    words = lambda i: f"instance {i % count}, radius {radius[i % count, 0]:.4f}, flips"
    return Trial(measured, np.zeros(2 * count), words), None


@claim(
    "A coordinate that switches",
    "formulas C.4; E14",
    OURS,
    "where g_i changes sign the Linf attack jumps by 2 eps if H_ii >= 0, and moves continuously "
    "with slope 1/h if H_ii = -h < 0",
    sabotage={
        "a jump whatever H_ii": dict(expect=lambda h, theta: 2 * EPS + 0 * h),
        "the sign of H_ii": dict(expect=lambda h, theta: np.where(h > 0, 2 * EPS, 2 * theta)),
        "minimizers for maximizers": dict(sense=-1.0),
    },
)
def _switch(rng, count, *, expect=None, sense=1.0):
    # l = theta x - h x^2/2 on [-eps, eps]: for h > 0 x' = clip(theta/h), otherwise an end.
    h = rng.uniform(0.2, 2, size=count) * np.where(np.arange(count) % 2, 1.0, -1.0)
    theta = np.full(count, 1e-9)
    grid = EPS * np.linspace(-1, 1, 201)

    def attack(t):
        inside = np.clip(t / h, -EPS, EPS)
        points = np.concatenate([np.tile(grid[:, None], len(h)), inside[None]])
        loss = t * points - h * points**2 / 2
        return np.take_along_axis(points, (sense * loss).argmax(0)[None], 0)[0]

    jump = np.abs(attack(theta) - attack(-theta))
    words = lambda i: f"H_ii = {-h[i]:.3f}, jump {jump[i]:.2e}, distance"
    exact = lambda h, theta: np.where(h > 0, 2 * theta / np.abs(h), 2 * EPS)
    return within(np.abs(jump - (expect or exact)(h, theta)), 1e-12, words), None


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
    IMPLIED,
    "grad_x l of the networks of the experiments is Lipschitz, say with constant 1e4 (ReLU)",
    "that of a network with smooth activations is (tanh, constant from the weights)",
    sabotage={
        "ReLU for tanh": dict(smooth="relu"),
        "tanh for ReLU": dict(rough="tanh"),
        "the constant divided by 10": dict(scale=0.1),
    },
)
def _relu(rng, count, *, smooth="tanh", rough="relu", scale=1.0):
    w1, w2 = _weights(rng, count)
    x = rng.normal(size=(count, 3))
    row = w1[:, 0]
    x -= (np.sum(x * row, 1) / np.sum(row**2, 1))[:, None] * row  # onto the kink of unit 0
    ends = [x + s * 1e-9 * unit(row) for s in (1, -1)]
    change = {}
    with jax.enable_x64(True):
        for name in {smooth, rough}:
            gradient = _derivatives(name)[0]
            change[name] = norm(gradient(ends[0], w1, w2) - gradient(ends[1], w1, w2))
    step = norm(ends[0] - ends[1])
    # |H| <= |J|^2/2 + |w1|^2 max|tanh''| sum_k |r_k||w2_k|, with |r|_2 <= sqrt 2.
    sizes = [np.linalg.norm(w, 2, axis=(1, 2)) for w in (w1, w2)]
    constant = (sizes[0] * sizes[1]) ** 2 / 2 + 0.77 * sizes[0] ** 2 * sizes[1] * np.sqrt(2)
    words = lambda i: f"network {i}, two sides of a kink, {step[i]:.0e} apart"
    rounding = 1e-13
    return (
        Trial(change[rough], 1e4 * step, words),
        Trial(change[smooth], scale * constant * step + rounding, words),
    )


@claim(
    "Lemma 4 for ReLU networks",
    "Lemma 4; E21",
    OURS,
    "a ReLU network with cross-entropy has smallest eigenvalue of H >= 0 where H exists: no "
    "interior attack meets the lemma's hypothesis",
    sabotage={"tanh for ReLU": dict(activation="tanh")},
)
def _never(rng, count, *, activation="relu"):
    w1, w2 = _weights(rng, count)
    with jax.enable_x64(True):
        hessians = np.asarray(_derivatives(activation)[1](rng.normal(size=(count, 3)), w1, w2))
    lowest = np.linalg.eigvalsh(hessians)[:, 0]
    return within(np.maximum(-lowest, 0), 1e-10, lambda i: f"network {i}"), None
