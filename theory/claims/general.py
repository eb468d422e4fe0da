"""Claims on smoothness in general: formulas A.5 to A.9, B.2, B.8; errata E5, E19, E20, E24.

The quadratic of `_quadratics` has exact attacks: the loss -|x' - M theta|^2/2 + theta^T S theta/2
is largest at the projection of M theta.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxadv import theory

from .linear import EPS, X, attack_motion, rows
from .registry import Trial, claim, norm, pair, unit

EXPONENTS = {1.0: -1.0, 1.5: 0.0, 2.0: 0.0, 3.0: -0.5, 6.0: -0.8, np.inf: -1.0}


def _project(points: np.ndarray, kind: str) -> np.ndarray:
    if kind == "linf":
        return np.clip(points, -EPS, EPS)
    return points * np.minimum(1, EPS / norm(points))[:, None]


@claim(
    "Lemma 1",
    "Lemma 1",
    "an attack that is C-Lipschitz makes L_eps (C_thth + C C_thx)-smooth",
)
def _lemma1(rng, count):
    matrices = rng.normal(size=(count, 3, 3))
    gram = np.einsum("nki,nkj->nij", matrices, matrices)
    symmetric = rng.normal(size=(count, 3, 3))
    symmetric = symmetric + np.swapaxes(symmetric, 1, 2)
    symmetric[: count // 2] = 2 * gram[: count // 2]  # equality while the attack is inside
    a, b = 0.3 * rng.normal(size=(2, count, 3))
    b[::2] = 1e-3 * b[::2] + a[::2]
    a[: count // 4], b[: count // 4] = 0.01 * a[: count // 4], 0.01 * b[: count // 4]
    top = np.linalg.svd(matrices[: count // 4])[2][:, 0]
    a[: count // 4], b[: count // 4] = 0.01 * top, -0.01 * top
    largest = np.linalg.norm(matrices, 2, axis=(1, 2))
    frozen = np.linalg.norm(symmetric - gram, 2, axis=(1, 2))
    bound = (frozen + largest * largest) * norm(a - b)  # C = C_thx = |M|
    times = lambda m, v: np.einsum("nij,nj->ni", m, v)
    measured = []
    for kind in ("l2", "linf"):
        gradient = lambda t, k=kind: (
            times(
                np.swapaxes(matrices, 1, 2),
                _project(times(matrices, t), k) - times(matrices, t),
            )
            + times(symmetric, t)
        )
        measured.append(norm(gradient(a) - gradient(b)))
    both = lambda v: np.concatenate([v, v])
    return Trial(np.concatenate(measured), both(bound), pair(both(a), both(b))), None


@claim(
    "Danskin",
    "formulas A.9 (F1)",
    "the one-sided derivative of l_eps along v is max G(x', theta)^T v over all maximizers (Linf)",
)
def _danskin(rng, count):
    theta = rng.normal(size=(count, 3)) * (rng.uniform(size=(count, 3)) < 0.6)
    v, step = unit(rng.normal(size=(count, 3))), 1e-6
    ends = [rows(theory.linear_loss, theta + s * step * v, "linf") for s in (0, 1)]
    # Over the maximizers x - eps z, z in the subdifferential of norm_1.
    slope = np.where(theta == 0, np.abs(v), np.sign(theta) * v).sum(1)
    margin = theta @ X - EPS * np.abs(theta).sum(1)
    formula = -(v @ X - EPS * slope) / (1 + np.exp(margin))
    witness = lambda i: f"theta = {theta[i].round(3).tolist()}, v = {v[i].round(3).tolist()}"
    measured = np.abs((ends[1] - ends[0]) / step - formula)
    return Trial(measured, np.full(count, 3e-6), witness), None


@claim(
    "(MON) for PGD",
    "formulas A.9 (F2)",
    "attacks by PGD-10 satisfy (MON) as exact ones do (swish toy)",
)
def _monotone_pgd(rng, count):
    # PGD oscillates around the maximizer: pairs across the axis that the oscillation depends on.
    height = 10.0 ** rng.uniform(-4, -2, size=count)
    first = rng.uniform(0.9, 1.7, size=count)
    thetas = np.stack([np.stack([first, s * height], 1) for s in (-1, 1)])

    def gradient(theta):
        delta = theory.toy_pgd(theta, norm="linf", num_steps=10, step_size=0.15, keep_best=False)
        point = jnp.asarray(theory.TOY_POINT) + jax.lax.stop_gradient(delta)
        return jax.grad(lambda t: theory.toy_margin_loss(t @ point, model="swish"))(theta)

    with jax.enable_x64(True):
        a, b = (np.asarray(jax.jit(jax.vmap(gradient))(jnp.asarray(t))) for t in thetas)
    step = thetas[0] - thetas[1]
    measured = -np.sum((a - b) * step, 1) / np.sum(step**2, 1)
    bound = np.full(len(measured), float(theory.toy_weak_convexity(norm="linf")))
    return Trial(measured, bound, pair(*thetas)), None


def _roughness(place: str) -> np.ndarray:
    """Exponents of the slope of the gradient, one per norm, at a critical point of that kind."""
    thetas = {
        "axis": {p: np.array([0.0, 1.3, -0.7]) for p in EXPONENTS} | {1.0: np.array([1, 1, 0.2])},
        "origin": {p: np.zeros(3) for p in EXPONENTS},
    }
    direction = np.array([1.0, -0.3, 0.2])
    found = []
    for p, theta in thetas[place].items():
        gradient = lambda t, p=p: theory.linear_gradient(t, X, 1.0, p=p, eps=EPS)
        found.append(
            theory.slope_exponent(gradient, theta, direction, spacing=1e-5, num_levels=6).exponent
        )
    return np.array(found)


@claim(
    "Roughness for every p",
    "formulas B.8",
    "at theta_i = 0 (p = 1: at a tie) slopes of grad l_eps grow like h^e with e = -1 for p = 1 and "
    "inf, 0 for 1 < p <= 2, 1/(p - 1) - 1 for p > 2 (deviation of e)",
)
def _exponents(rng, count):
    del rng, count
    deviation = np.abs(_roughness("axis") - np.array(list(EXPONENTS.values())))
    witness = lambda i: f"p = {list(EXPONENTS)[i]:g}"
    return Trial(deviation, np.full(len(deviation), 0.02), witness), None


@claim("Kink at the origin", "formulas B.8", "at theta = 0 that exponent is -1 for every p")
def _origin(rng, count):
    del rng, count
    deviation = np.abs(_roughness("origin") + 1)
    witness = lambda i: f"p = {list(EXPONENTS)[i]:g}"
    return Trial(deviation, np.full(len(deviation), 0.02), witness), None


def _at_an_axis(rng, count) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points with theta_1 = +-1e-9 and the predicted jump 2 eps s(-M)."""
    theta = rng.normal(size=(count, 3))
    theta[:, 0] = 0
    margin = theta @ X - EPS * np.abs(theta).sum(1)
    shift = 1e-9 * np.eye(3)[0]
    return theta - shift, theta + shift, 2 * EPS / (1 + np.exp(margin))


@claim(
    "Proof of Theorem 2",
    "proof of Theorem 2; E5",
    "attacks known only to be at most 2 eps apart make slopes of the gradient unbounded, say 1e3 "
    "(L2, where they are 2 eps apart at most as well)",
    "under Linf the gradient jumps by 2 eps s(-M) at theta_i = 0",
)
def _jump(rng, count):
    a, b = rng.normal(size=(2, count, 3)) + np.array([2.0, 0, 0])
    keep = attack_motion(a, b, "l2") <= 2 * EPS
    a, b = a[keep], b[keep]
    slope = norm(rows(theory.linear_gradient, a, "l2") - rows(theory.linear_gradient, b, "l2"))
    worst = slope.max(initial=0, where=norm(a - b) > 0) / norm(a - b)[slope.argmax()]
    printed = Trial(np.array([1e3]), np.array([worst]), lambda i: "L2, largest slope on the right")
    low, high, jump = _at_an_axis(rng, count)
    ends = [rows(theory.linear_gradient, t, "linf") for t in (low, high)]
    measured = np.abs(norm(ends[1] - ends[0]) - jump)
    return printed, Trial(measured, np.full(count, 1e-8), pair(low, high))


@claim(
    "Continuity at theta_i = 0",
    "after Theorem 2; E19",
    "the adversarial loss is not continuous at theta_i = 0: it jumps by 1e-3 or more over 2e-9",
    "it is Lipschitz; its gradient jumps",
)
def _continuity(rng, count):
    low, high, jump = _at_an_axis(rng, count)
    ends = [rows(theory.linear_loss, t, "linf") for t in (low, high)]
    change = np.abs(ends[1] - ends[0])
    witness = lambda i: f"theta = {high[i].round(3).tolist()}: the loss changes by {change[i]:.1e}"
    printed = Trial(np.full(count, 1e-3), change, witness)
    slopes = [rows(theory.linear_gradient, t, "linf") for t in (low, high)]
    lipschitz = float(theory.adversarial_radius(X, p=np.inf, eps=EPS)) * norm(high - low)
    measured = np.concatenate([change, jump])
    bounds = np.concatenate([lipschitz, norm(slopes[1] - slopes[0]) + 1e-8])
    both = lambda v: np.concatenate([v, v])
    return printed, Trial(measured, bounds, pair(both(low), both(high)))


@claim(
    "Cross-smoothness",
    "eq. 7; E20",
    "C_thx makes the loss smooth in x: |grad_x l(x1) - grad_x l(x2)| <= C_thx |x1 - x2|",
    "grad_theta l is C_thx-Lipschitz in x",
)
def _cross(rng, count):
    reach, largest = 0.5, 20.0
    bound = float(theory.logistic_constants(reach, largest, dim=3).cross)
    theta = largest * unit(rng.normal(size=(count, 3)))
    ends = reach * unit(rng.normal(size=(2, count, 3))) * rng.uniform(size=(2, count, 1))
    ends[1, ::2] = ends[0, ::2] + 1e-3 * (ends[1, ::2] - ends[0, ::2])
    weights = [-1 / (1 + np.exp(np.sum(theta * x, 1)))[:, None] for x in ends]
    distance = bound * norm(ends[0] - ends[1])
    return (
        Trial(norm((weights[0] - weights[1]) * theta), distance, pair(*ends)),
        Trial(norm(weights[0] * ends[0] - weights[1] * ends[1]), distance, pair(*ends)),
    )


@claim(
    "Multiplier of the L2 attack",
    "proof of Lemma 2; E24",
    "delta = -k y theta with k = eps lies on the sphere |delta| = eps",
    "k = eps/|theta|, and then delta is the optimal attack",
)
def _multiplier(rng, count):
    theta = rng.normal(size=(count, 3))
    exact = rows(theory.linear_attack, theta, "l2") - X
    rounding = np.full(count, 1e-12)
    witness = lambda i: f"theta = {theta[i].round(4).tolist()}, distance"
    corrected = norm(-EPS * unit(theta) - exact) + np.abs(norm(exact) - EPS)
    return (
        Trial(np.abs(norm(-EPS * theta) - EPS), rounding, witness),
        Trial(corrected, rounding, witness),
    )
