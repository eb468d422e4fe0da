"""Claims on smoothness in general: formulas A.5 to A.9, B.2, B.8; errata E5, E19, E20, E24."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxadv import theory

from .linear import EPS, X, attack_motion, rows
from .registry import OURS, PRINTED, Trial, claim, join, norm, pair, unit, within

EXPONENTS = {1.0: -1.0, 1.5: 0.0, 2.0: 0.0, 3.0: -0.5, 6.0: -0.8, np.inf: -1.0}


def _project(points: np.ndarray, kind: str) -> np.ndarray:
    if kind == "linf":
        return np.clip(points, -EPS, EPS)
    return points * np.minimum(1, EPS / norm(points))[:, None]


@claim(
    "Lemma 1",
    "Lemma 1",
    PRINTED,
    "an attack that is C-Lipschitz makes L_eps (C_thth + C C_thx)-smooth",
    sabotage={
        "attack motion dropped": dict(motion=0.0),
        "an attack that does not maximize": dict(attack=lambda p, _: EPS * np.sign(p)),
    },
)
def _lemma1(rng, count, *, motion=1.0, attack=_project):
    # -|x' - M theta|^2/2 + theta^T S theta/2 is largest at the projection of M theta.
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
    bound = (frozen + motion * largest * largest) * norm(a - b)  # C = C_thx = |M|
    times = lambda m, v: np.einsum("nij,nj->ni", m, v)
    measured = []
    for kind in ("l2", "linf"):
        gradient = lambda t, k=kind: (
            times(
                np.swapaxes(matrices, 1, 2),
                attack(times(matrices, t), k) - times(matrices, t),
            )
            + times(symmetric, t)
        )
        measured.append(norm(gradient(a) - gradient(b)))
    both = lambda v: np.concatenate([v, v])
    return Trial(np.concatenate(measured), both(bound), pair(both(a), both(b))), None


@claim(
    "Danskin",
    "formulas A.9 (F1)",
    OURS,
    "the one-sided derivative of l_eps along v is max G(x', theta)^T v over all maximizers (Linf)",
    sabotage={
        "the smallest instead of the largest": dict(choice=-1.0),
        "one maximizer instead of all": dict(choice=0.0),
    },
)
def _danskin(rng, count, *, choice=1.0):
    theta = rng.normal(size=(count, 3)) * (rng.uniform(size=(count, 3)) < 0.6)
    v, step = unit(rng.normal(size=(count, 3))), 1e-6
    ends = [rows(theory.linear_loss, theta + s * step * v, "linf") for s in (0, 1)]
    # Over the maximizers x - eps z, z in the subdifferential of norm_1.
    slope = np.where(theta == 0, choice * np.abs(v), np.sign(theta) * v).sum(1)
    margin = theta @ X - EPS * np.abs(theta).sum(1)
    formula = -(v @ X - EPS * slope) / (1 + np.exp(margin))
    witness = lambda i: f"theta = {theta[i].round(3).tolist()}, v = {v[i].round(3).tolist()}"
    measured = np.abs((ends[1] - ends[0]) / step - formula)
    return Trial(measured, np.full(count, 3e-6), witness), None


def _exact(theta):
    return theory.toy_attack(theta, model="swish", norm="linf").delta


def _pgd(theta):
    return theory.toy_pgd(theta, norm="linf", num_steps=10, step_size=0.15, keep_best=False)


@claim(
    "(MON) exposes PGD",
    "formulas A.9 (F2)",
    OURS,
    "for some pair attacks by PGD-10 violate (MON), which exact ones satisfy: they are no global "
    "maximum (swish toy, Linf; w against the largest violation)",
    sabotage={"exact attacks": dict(attack=_exact)},
)
def _monotone_pgd(rng, count, *, attack=_pgd):
    # PGD oscillates around the maximizer: pairs across the axis that the oscillation depends on.
    height = 10.0 ** rng.uniform(-4, -2, size=count)
    first = rng.uniform(0.9, 1.7, size=count)
    thetas = np.stack([np.stack([first, s * height], 1) for s in (-1, 1)])

    def gradient(theta):
        point = jnp.asarray(theory.TOY_POINT) + jax.lax.stop_gradient(attack(theta))
        return jax.grad(lambda t: theory.toy_margin_loss(t @ point, model="swish"))(theta)

    with jax.enable_x64(True):
        a, b = (np.asarray(jax.jit(jax.vmap(gradient))(jnp.asarray(t))) for t in thetas)
    step = thetas[0] - thetas[1]
    quotient = -np.sum((a - b) * step, 1) / np.sum(step**2, 1)
    bound = float(theory.toy_weak_convexity(norm="linf"))
    words = lambda i: f"a = {thetas[0][quotient.argmax()].round(5).tolist()}"
    return Trial(np.full(count, bound), np.full(count, quotient.max()), words), None


def _roughness(rng, count: int, place: str) -> tuple[np.ndarray, list[float]]:
    """Exponents of the slope of the gradient at random critical points of a kind, and their p."""
    found, exponents = [], []
    for index in range(max(count, len(EXPONENTS))):
        p = list(EXPONENTS)[index % len(EXPONENTS)]
        # A tie of the largest is critical for p = 1, an axis for p > 2.
        second, third = rng.uniform(1, 2), rng.uniform(-0.9, 0.9)
        theta = np.array([second if p == 1 else 0.0, second, third])
        theta = theta * (place == "axis")
        direction = unit(np.array([1.0, 0.2, 0.2]) + 0.1 * rng.normal(size=3))
        x = 0.3 * rng.normal(size=3)
        gradient = lambda t, p=p, x=x: theory.linear_gradient(t, x, 1.0, p=p, eps=EPS)
        slopes = theory.slope_exponent(gradient, theta, direction, spacing=1e-5, num_levels=6)
        found.append(slopes.exponent)
        exponents.append(p)
    return np.array(found), exponents


@claim(
    "Roughness for every p",
    "formulas B.8",
    OURS,
    "at theta_i = 0 (p = 1: at a tie) slopes of grad l_eps grow like h^e with e = -1 for p = 1 and "
    "inf, 0 for 1 < p <= 2, 1/(p - 1) - 1 for p > 2 (deviation of e)",
    sabotage={
        "e = 0 for p > 2": dict(expected=EXPONENTS | {3.0: 0.0, 6.0: 0.0}),
        "e = 1/p - 1 for p > 2": dict(expected=EXPONENTS | {3.0: -2 / 3, 6.0: -5 / 6}),
    },
    cost=200,
)
def _exponents(rng, count, *, expected=EXPONENTS):
    found, exponents = _roughness(rng, count, "axis")
    deviation = np.abs(found - np.array([expected[p] for p in exponents]))
    return within(deviation, 0.03, lambda i: f"p = {exponents[i]:g}"), None


@claim(
    "Kink at the origin",
    "formulas B.8",
    OURS,
    "at theta = 0 that exponent is -1 for every p",
    sabotage={"a point off the origin": dict(place="axis")},
    cost=200,
)
def _origin(rng, count, *, place="origin"):
    found, exponents = _roughness(rng, count, place)
    return within(np.abs(found + 1), 0.02, lambda i: f"p = {exponents[i]:g}"), None


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
    PRINTED,
    "attacks known only to be at most 2 eps apart make slopes of the gradient unbounded, say 1e3 "
    "(L2, where they are 2 eps apart at most as well)",
    "under Linf the gradient jumps by 2 eps s(-M) at theta_i = 0",
    sabotage={
        "the jump eps s(-M)": dict(scale=0.5),
        "the L2 gradient at the axis": dict(kind="l2"),
        "the origin among the L2 pairs": dict(shift=0.0),
    },
)
def _jump(rng, count, *, scale=1.0, kind="linf", shift=2.0):
    a, b = rng.normal(size=(2, count, 3)) + np.array([shift, 0, 0])
    if not shift:
        a, b = 1e-6 * a, -1e-6 * a
    keep = attack_motion(a, b, "l2") <= 2 * EPS * (1 + 1e-12)
    a, b = a[keep], b[keep]
    slope = norm(rows(theory.linear_gradient, a, "l2") - rows(theory.linear_gradient, b, "l2"))
    worst = (slope / norm(a - b)).max()
    words = lambda i: "L2, largest slope on the right"
    printed = Trial(np.full(len(a), 1e3), np.full(len(a), worst), words)
    low, high, jump = _at_an_axis(rng, count)
    ends = [rows(theory.linear_gradient, t, kind) for t in (low, high)]
    measured = np.abs(norm(ends[1] - ends[0]) - scale * jump)
    return printed, Trial(measured, np.full(count, 1e-8), pair(low, high))


@claim(
    "Continuity at theta_i = 0",
    "after Theorem 2; E19",
    PRINTED,
    "the adversarial loss is not continuous at theta_i = 0: it jumps by 1e-3 or more over 2e-9",
    "it is Lipschitz; its gradient jumps",
    sabotage={
        "an attack that points the wrong way on one side": dict(attack=-1.0),
        "half the jump of the gradient": dict(scale=2.0),
    },
)
def _continuity(rng, count, *, attack=1.0, scale=1.0):
    low, high, jump = _at_an_axis(rng, count)
    losses = [
        np.logaddexp(0, -(t @ X - sense * EPS * np.abs(t).sum(1)))
        for t, sense in ((low, attack), (high, 1.0))
    ]
    change = np.abs(losses[1] - losses[0])
    witness = lambda i: f"theta = {high[i].round(3).tolist()}: the loss changes by {change[i]:.1e}"
    printed = Trial(np.full(count, 1e-3), change, witness)
    slopes = [rows(theory.linear_gradient, t, "linf") for t in (low, high)]
    lipschitz = float(theory.adversarial_radius(X, p=np.inf, eps=EPS)) * norm(high - low)
    return printed, join(
        Trial(change, lipschitz, pair(low, high)),
        Trial(scale * jump, norm(slopes[1] - slopes[0]) + 1e-8, pair(low, high)),
    )


@claim(
    "Cross-smoothness",
    "eq. 7; E20",
    PRINTED,
    "C_thx makes the loss smooth in x: |grad_x l(x1) - grad_x l(x2)| <= C_thx |x1 - x2|",
    "grad_theta l is C_thx-Lipschitz in x",
    sabotage={
        "bound divided by 4": dict(scale=0.25),
        "parameters so small that C_thx exceeds both": dict(largest=0.5),
    },
)
def _cross(rng, count, *, scale=1.0, largest=20.0):
    reach = 0.5
    bound = scale * float(theory.logistic_constants(reach, largest, dim=3).cross)
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
    PRINTED,
    "delta = -k y theta with k = eps lies on the sphere |delta| = eps",
    "k = eps/|theta|, and no point of the sphere has a larger loss",
    sabotage={
        "k = 0.99 eps/|theta|": dict(scale=0.99),
        "the sign of delta": dict(scale=-1.0),
        "parameters of length 1": dict(length=1.0),
    },
)
def _multiplier(rng, count, *, scale=1.0, length=None):
    theta = rng.normal(size=(count, 3))
    theta = theta if length is None else length * unit(theta)
    delta = -scale * EPS * unit(theta)
    loss = lambda d: np.logaddexp(0, -np.sum(theta * (X + d), 1))
    others = [loss(EPS * unit(rng.normal(size=(count, 3)))) for _ in range(20)]
    witness = lambda i: f"theta = {theta[i].round(4).tolist()}, distance"
    return within(np.abs(norm(-EPS * theta) - EPS), 1e-12, witness), join(
        within(np.abs(norm(delta) - EPS), 1e-12, witness),
        Trial(np.max(others, 0), loss(delta), witness),
    )
