"""Claims on the linear model: section 3 of the paper, formulas A.7 and B."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxadv import theory

from .registry import IMPLIED, OURS, PRINTED, Trial, claim, join, norm, pair, spectral, unit

EPS = 0.5
X = np.array([0.9, -0.4, 0.3])  # of length below 1.5
P = {"l2": 2.0, "linf": np.inf}
LOW, HIGH = 0.4, 3.0  # the annulus of Theorem 1


@functools.cache
def _batched(function, p):
    return jax.jit(jax.vmap(lambda t, x: function(t, x, 1.0, p=p, eps=EPS)))


def rows(function, thetas: np.ndarray, kind: str, x: np.ndarray = X) -> np.ndarray:
    """A function of the linear model at every row of ``thetas``; the norm is "l2" or "linf"."""
    images = np.broadcast_to(x, thetas.shape)
    with jax.enable_x64(True):
        return np.asarray(_batched(function, P[kind])(jnp.asarray(thetas), jnp.asarray(images)))


def pairs(rng, count: int, low: float, high: float) -> tuple[np.ndarray, np.ndarray]:
    """Pairs in an annulus: far, near, antipodal, and of equal length, a quarter each."""
    a = unit(rng.normal(size=(count, 3))) * rng.uniform(low, high, size=(count, 1))
    b = unit(rng.normal(size=(count, 3))) * rng.uniform(low, high, size=(count, 1))
    quarter = count // 4
    near = a[:quarter] + 1e-3 * rng.normal(size=(quarter, 3))
    b[:quarter] = unit(near) * np.clip(norm(near), low, high)[:, None]
    b[quarter : 2 * quarter] = -a[quarter : 2 * quarter]
    a[2 * quarter : 3 * quarter] = low * unit(a[2 * quarter : 3 * quarter])
    b[2 * quarter : 3 * quarter] = low * unit(b[2 * quarter : 3 * quarter])
    return a, b


@claim(
    "Proposition 1, value",
    "eq. 8",
    PRINTED,
    "|L_eps(a) - L_eps(b)| <= C_th |a - b|",
    sabotage={
        "bound halved": dict(scale=0.5),
        "C_th on the clean inputs": dict(radius=lambda x, **_: norm(x)),
    },
)
def _value(rng, count, *, scale=1.0, radius=theory.adversarial_radius):
    a, b = pairs(rng, count, 0.1, HIGH)
    trials = []
    for kind in P:
        change = rows(theory.linear_loss, a, kind) - rows(theory.linear_loss, b, kind)
        reach = float(radius(X, p=P[kind], eps=EPS))
        bound = scale * theory.logistic_constants(reach, HIGH, dim=3).lipschitz * norm(a - b)
        trials.append(Trial(np.abs(change), bound, pair(a, b)))
    return join(*trials), None


@claim(
    "Proposition 1, gradient, Linf",
    "eq. 9; E4",
    PRINTED,
    "|grad L_eps(a) - grad L_eps(b)| <= C_thth |a - b| + 2 eps C_thx",
    "2 eps sqrt(d) C_thx",
    sabotage={
        "the diameter 2 eps": dict(diameter=lambda d: 2 * EPS),
        "the radius eps sqrt(d) for the diameter": dict(diameter=lambda d: EPS * np.sqrt(d)),
    },
    cost=40,
)
def _gradient(rng, count, *, diameter=lambda d: 2 * EPS * np.sqrt(d)):
    trials = []
    for d in (2, 10, 100, 400):
        signs = rng.choice([-1.0, 1.0], size=(count // 4, d))
        theta = 1e-9 * rng.uniform(0.5, 1, size=(count // 4, 1)) * signs
        ends = [rows(theory.linear_gradient, s * theta, "linf", np.zeros(d)) for s in (1, -1)]
        constants = theory.logistic_constants(EPS * np.sqrt(d), 1e-9 * np.sqrt(d), dim=d)
        smooth = constants.smoothness * 2 * norm(theta)
        words = lambda i, d=d: f"d = {d}, x = 0, a = -b, |a_i| < 1e-9, eps = {EPS}"
        change = norm(ends[0] - ends[1])
        bounds = [smooth + length * constants.cross for length in (2 * EPS, diameter(d))]
        trials.append([Trial(change, bound, words) for bound in bounds])
    printed, corrected = zip(*trials, strict=True)
    return join(*printed), join(*corrected)


def attack_motion(a, b, kind) -> np.ndarray:
    """Distances between the attacks at two batches of parameters, one number per row."""
    return norm(rows(theory.linear_attack, a, kind) - rows(theory.linear_attack, b, kind))


@claim(
    "Lemma 2",
    "Lemma 2; E3",
    PRINTED,
    "|x'(a) - x'(b)| <= (eps / th_min) |a - b| for all |a|, |b| >= th_min (L2)",
    sabotage={"bound 1 % smaller": dict(scale=0.99), "the Linf attack": dict(kind="linf")},
)
def _lemma2(rng, count, *, scale=1.0, kind="l2"):
    a, b = pairs(rng, count, LOW, HIGH)
    return Trial(attack_motion(a, b, kind), scale * EPS / LOW * norm(a - b), pair(a, b)), None


@claim(
    "Lemma 2, corollary",
    "after Lemma 2; E6",
    PRINTED,
    "the L2 attack is Lipschitz on a bounded set that does not include 0, say with 1e3",
    "bounded away from 0: eps / min(|a|, |b|)",
    sabotage={
        "bound 1 % smaller": dict(scale=0.99),
        "a set that is bounded away from 0": dict(smallest=-2),
    },
)
def _corollary(rng, count, *, scale=1.0, smallest=-8):
    a = unit(rng.normal(size=(count, 3))) * 10.0 ** rng.uniform(smallest, 0, size=(count, 1))
    b = -a
    motion = attack_motion(a, b, "l2")
    printed = Trial(motion, 1e3 * norm(a - b), pair(a, b))
    return printed, Trial(motion, scale * EPS / norm(a) * norm(a - b), pair(a, b))


@claim(
    "Theorem 1",
    "Theorem 1",
    PRINTED,
    "L_eps is (C_thth + eps C_thx / th_min)-smooth (L2)",
    sabotage={
        "attack motion dropped, C_thth alone": dict(bound=lambda *a, **k: _frozen()),
        "the Linf attack": dict(kind="linf"),
    },
)
def _theorem1(rng, count, *, bound=theory.theorem1_bound, kind="l2"):
    a, b = pairs(rng, count, LOW, HIGH)
    b[::8] = a[::8] * np.array([1.0, 1.0, -1.0])  # across an axis, and close to it
    a[::8, 2], b[::8, 2] = 1e-3, -1e-3
    keep = norm(a) >= LOW
    a, b = a[keep], b[keep]
    change = rows(theory.linear_gradient, a, kind) - rows(theory.linear_gradient, b, kind)
    constant = float(bound(X, eps=EPS, theta_min=LOW, theta_max=HIGH + 1e-3))
    return Trial(norm(change), constant * norm(a - b), pair(a, b)), None


def _frozen() -> float:
    return float(theory.adversarial_radius(X, p=2.0, eps=EPS)) ** 2 / 4


@claim(
    "The constant exceeds C_thth",
    "after Theorem 1",
    IMPLIED,
    "the loss of adversarial training is less smooth than C_thth: the constant is larger",
    "the constant of the theorem is larger; the best one exceeds C_thth near 0 and not far from it",
    sabotage={
        "attack motion dropped": dict(motion=0.0),
        "the annulus kept close to 0": dict(farthest=0.2),
    },
    cost=100,
)
def _larger(rng, count, *, motion=1.0, farthest=20.0):
    radius, eps = rng.uniform(0.5, 2, size=count), rng.uniform(0.1, 0.5, size=count)
    low = np.where(np.arange(count) % 2, 0.1, farthest) * rng.uniform(0.5, 1, size=count)
    frozen = (radius + eps) ** 2 / 4
    best, theorem = np.zeros(count), np.zeros(count)
    for i in range(count):
        options = dict(eps=eps[i], theta_min=low[i], theta_max=2 * low[i])
        best[i] = theory.annulus_smoothness(radius[i], **options)
        full = theory.theorem1_bound(np.array([radius[i], 0.0]), **options)
        theorem[i] = frozen[i] + motion * (full - frozen[i])
    words = lambda i: f"|x| = {radius[i]:.2f}, eps = {eps[i]:.2f}, th_min = {low[i]:.2f}, C_thth"
    near = low < 0.2
    return Trial(frozen, best, words), join(
        Trial(frozen, theorem * (1 - 1e-6), words),
        Trial(best, theorem, words),
        Trial(frozen[near], best[near], lambda i: f"near 0, instance {i}"),
    )


@claim(
    "Lemma 3, same signs",
    "Lemma 3",
    PRINTED,
    "x'(a) = x'(b) if all signs agree (Linf)",
    sabotage={"the L2 attack": dict(kind="l2"), "one sign differs": dict(flip=-1.0)},
)
def _lemma3_same(rng, count, *, kind="linf", flip=1.0):
    a = rng.normal(size=(count, 3))
    b = np.sign(a) * np.abs(rng.normal(size=(count, 3)))
    b[:, 0] *= flip
    return Trial(attack_motion(a, b, kind), np.zeros(count), pair(a, b)), None


@claim(
    "Lemma 3, signs differ",
    "Lemma 3; E7",
    PRINTED,
    "if one sign differs the attacks are 2 eps apart",
    "2 eps sqrt(k) apart, k the number of signs that differ",
    sabotage={"k for sqrt(k)": dict(power=1.0), "the L2 attack": dict(kind="l2")},
)
def _lemma3(rng, count, *, power=0.5, kind="linf"):
    a, b = rng.normal(size=(2, count, 3))
    flips = np.sum(np.sign(a) != np.sign(b), axis=1)
    keep = flips > 0
    a, b, flips = a[keep], b[keep], flips[keep]
    motion = attack_motion(a, b, kind)
    # The measured distance of the motion from what is claimed, against rounding.
    rounding = np.full(len(a), 1e-14)
    printed = Trial(np.abs(motion - 2 * EPS), rounding, pair(a, b))
    return printed, Trial(np.abs(motion - 2 * EPS * flips**power), rounding, pair(a, b))


@claim(
    "Linf attack away from the axes",
    "after Lemma 3; E7",
    OURS,
    "the Linf attack is (eps / tau)-Lipschitz on {min_i |theta_i| >= tau}, signs or not",
    sabotage={
        "bound 1 % smaller": dict(scale=0.99),
        "points closer to the axes": dict(closest=0.5),
    },
)
def _away(rng, count, *, scale=1.0, closest=1.0):
    tau = 0.3
    a = np.sign(rng.normal(size=(count, 3))) * (tau + rng.exponential(size=(count, 3)))
    b = np.sign(rng.normal(size=(count, 3))) * (tau + rng.exponential(size=(count, 3)))
    a[: count // 2] = closest * tau * np.sign(a[: count // 2])
    b[: count // 2] = closest * tau * np.sign(b[: count // 2])
    bound = scale * EPS / tau * norm(a - b)
    return Trial(attack_motion(a, b, "linf"), bound, pair(a, b)), None


@claim(
    "Theorem 2",
    "Theorem 2",
    PRINTED,
    "L_eps is C_thth-smooth on an orthant (Linf)",
    sabotage={
        "bound divided by 4": dict(scale=0.25),
        "pairs on two sides of an axis": dict(sides=(1e-3, -1e-3)),
    },
)
def _theorem2(rng, count, *, scale=1.0, sides=(1.0, 1.0)):
    a = 2 * rng.normal(size=(count, 3))
    b = np.sign(a) * np.abs(2 * rng.normal(size=(count, 3)))
    b[::2] = a[::2] * (1 + 0.1 * rng.uniform(size=a[::2].shape))
    a[:, 0], b[:, 0] = sides[0] * a[:, 0], sides[1] * b[:, 0]
    change = rows(theory.linear_gradient, a, "linf") - rows(theory.linear_gradient, b, "linf")
    bound = scale * float(theory.theorem2_bound(X, eps=EPS))
    return Trial(norm(change), bound * norm(a - b), pair(a, b)), None


@claim(
    "Assumption 1",
    "eq. 7; E33",
    PRINTED,
    "C_thx is finite for the logistic loss, say below 10, whatever the parameters",
    "1 + K/4 with K = max|x'| max|theta|: the parameters have to be bounded",
    sabotage={
        "1 + K/8": dict(rate=1 / 8),
        "parameters with K <= 30": dict(largest=1.4),
    },
    cost=10,
)
def _assumption(rng, count, *, rate=1 / 4, largest=4.0):
    products = 10.0 ** rng.uniform(-2, largest, size=count)
    # B = s(-m) I - s(m) s(-m) x' theta^T up to sign, |x'| = 1, |theta| = K, m = K cos(angle).
    margins = np.linspace(-30, 30, 241)
    m = np.clip(margins[None, :], -products[:, None], products[:, None])
    cosine = m / products[:, None]
    theta = products[:, None, None] * np.stack([cosine, np.sqrt(1 - cosine**2)], -1)
    s = 1 / (1 + np.exp(m))
    mixed = s[..., None, None] * np.eye(2)
    mixed[..., 0, :] -= (s * (1 - s))[..., None] * theta
    measured = spectral(mixed).max(1)
    words = lambda i: f"K = {products[i]:.0f}"
    printed = Trial(measured, np.full(count, 10.0), words)
    return printed, Trial(measured, 1 + rate * products, words)
