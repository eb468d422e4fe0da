"""Claims on the linear model: section 3 of the paper, formulas A.7 and B."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxadv import theory

from .registry import Trial, claim, norm, pair, unit

EPS = 0.5
X = np.array([0.9, -0.4, 0.3])  # of length below 1.5
P = {"l2": 2.0, "linf": np.inf}


@functools.cache
def _batched(function, p):
    return jax.jit(jax.vmap(lambda t, x: function(t, x, 1.0, p=p, eps=EPS), (0, None)))


def rows(function, thetas: np.ndarray, kind: str, x: np.ndarray = X) -> np.ndarray:
    """A function of the linear model at every row of ``thetas``; the norm is "l2" or "linf"."""
    with jax.enable_x64(True):
        return np.asarray(_batched(function, P[kind])(jnp.asarray(thetas), jnp.asarray(x)))


def _pairs(rng, count: int, low: float, high: float) -> tuple[np.ndarray, np.ndarray]:
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


@claim("Proposition 1, value", "eq. 8", "|L_eps(a) - L_eps(b)| <= C_th |a - b|")
def _value(rng, count):
    a, b = _pairs(rng, count, 0.1, 3.0)
    measured, bounds = [], []
    for kind in P:
        change = rows(theory.linear_loss, a, kind) - rows(theory.linear_loss, b, kind)
        reach = float(theory.adversarial_radius(X, p=P[kind], eps=EPS))
        measured.append(np.abs(change))
        bounds.append(theory.logistic_constants(reach, 3.0, dim=3).lipschitz * norm(a - b))
    both = lambda v: np.concatenate([v, v])
    return Trial(np.concatenate(measured), np.concatenate(bounds), pair(both(a), both(b))), None


@claim(
    "Proposition 1, gradient, Linf",
    "eq. 9; E4",
    "|grad L_eps(a) - grad L_eps(b)| <= C_thth |a - b| + 2 eps C_thx",
    "2 eps sqrt(d) C_thx",
)
def _gradient(rng, count):
    del count
    dims = np.array([2, 10, 100, 400])
    measured, printed, corrected = [], [], []
    for d in dims:
        theta = 1e-9 * np.sign(rng.normal(size=(1, d)))
        x = np.zeros(d)
        ends = [rows(theory.linear_gradient, s * theta, "linf", x)[0] for s in (1, -1)]
        reach = EPS * np.sqrt(d)
        constants = theory.logistic_constants(reach, 1e-9 * np.sqrt(d), dim=int(d))
        smooth = constants.smoothness * 2e-9 * np.sqrt(d)
        measured.append(np.linalg.norm(ends[0] - ends[1]))
        printed.append(smooth + 2 * EPS * constants.cross)
        corrected.append(smooth + 2 * EPS * np.sqrt(d) * constants.cross)
    witness = lambda i: f"d = {dims[i]}, x = 0, a = -b, |a_i| = 1e-9, eps = {EPS}"
    measured = np.array(measured)
    return (
        Trial(measured, np.array(printed), witness),
        Trial(measured, np.array(corrected), witness),
    )


def attack_motion(a, b, kind) -> np.ndarray:
    """Distances between the attacks at two batches of parameters, one number per row."""
    return norm(rows(theory.linear_attack, a, kind) - rows(theory.linear_attack, b, kind))


@claim(
    "Lemma 2",
    "Lemma 2; E3",
    "|x'(a) - x'(b)| <= (eps / th_min) |a - b| for all |a|, |b| >= th_min (L2)",
)
def _lemma2(rng, count):
    a, b = _pairs(rng, count, 0.4, 3.0)
    return Trial(attack_motion(a, b, "l2"), EPS / 0.4 * norm(a - b), pair(a, b)), None


@claim(
    "Lemma 2, corollary",
    "after Lemma 2; E6",
    "the L2 attack is Lipschitz on a bounded set that does not include 0, say with 1e3",
    "bounded away from 0: eps / min(|a|, |b|)",
)
def _corollary(rng, count):
    a = unit(rng.normal(size=(count, 3))) * 10.0 ** rng.uniform(-8, 0, size=(count, 1))
    b = -a
    motion = attack_motion(a, b, "l2")
    printed = Trial(motion, 1e3 * norm(a - b), pair(a, b))
    return printed, Trial(motion, EPS / norm(a) * norm(a - b), pair(a, b))


@claim("Theorem 1", "Theorem 1", "L_eps is (C_thth + eps C_thx / th_min)-smooth (L2)")
def _theorem1(rng, count):
    a, b = _pairs(rng, count, 0.4, 3.0)
    change = rows(theory.linear_gradient, a, "l2") - rows(theory.linear_gradient, b, "l2")
    bound = float(theory.theorem1_bound(X, eps=EPS, theta_min=0.4, theta_max=3.0))
    return Trial(norm(change), bound * norm(a - b), pair(a, b)), None


@claim(
    "Lemma 3, same signs",
    "Lemma 3",
    "x'(a) = x'(b) if all signs agree (Linf)",
)
def _lemma3_same(rng, count):
    a = rng.normal(size=(count, 3))
    b = np.sign(a) * np.abs(rng.normal(size=(count, 3)))
    return Trial(attack_motion(a, b, "linf"), np.zeros(count), pair(a, b)), None


@claim(
    "Lemma 3, signs differ",
    "Lemma 3; E7",
    "if one sign differs the attacks are 2 eps apart",
    "2 eps sqrt(k) apart, k the number of signs that differ",
)
def _lemma3(rng, count):
    a, b = rng.normal(size=(2, count, 3))
    flips = np.sum(np.sign(a) != np.sign(b), axis=1)
    keep = flips > 0
    a, b, flips = a[keep], b[keep], flips[keep]
    motion = attack_motion(a, b, "linf")
    # The measured distance of the motion from what is claimed, against rounding.
    rounding = np.full(len(a), 1e-14)
    printed = Trial(np.abs(motion - 2 * EPS), rounding, pair(a, b))
    return printed, Trial(np.abs(motion - 2 * EPS * np.sqrt(flips)), rounding, pair(a, b))


@claim(
    "Linf attack away from the axes",
    "after Lemma 3; E7",
    "the Linf attack is (eps / tau)-Lipschitz on {min_i |theta_i| >= tau}, signs or not",
)
def _away(rng, count):
    tau = 0.3
    a = np.sign(rng.normal(size=(count, 3))) * (tau + rng.exponential(size=(count, 3)))
    b = np.sign(rng.normal(size=(count, 3))) * (tau + rng.exponential(size=(count, 3)))
    a[: count // 2] = tau * np.sign(a[: count // 2])
    b[: count // 2] = tau * np.sign(b[: count // 2])
    return Trial(attack_motion(a, b, "linf"), EPS / tau * norm(a - b), pair(a, b)), None


@claim("Theorem 2", "Theorem 2", "L_eps is C_thth-smooth on an orthant (Linf)")
def _theorem2(rng, count):
    a = 2 * rng.normal(size=(count, 3))
    b = np.sign(a) * np.abs(2 * rng.normal(size=(count, 3)))
    change = rows(theory.linear_gradient, a, "linf") - rows(theory.linear_gradient, b, "linf")
    bound = float(theory.theorem2_bound(X, eps=EPS))
    return Trial(norm(change), bound * norm(a - b), pair(a, b)), None


@claim(
    "Assumption 1",
    "eq. 7; E33",
    "C_thx is finite for the logistic loss, say below 10, whatever the parameters",
    "1 + K/4 with K = max|x'| max|theta|: the parameters have to be bounded",
)
def _assumption(rng, count):
    del rng, count
    products = 10.0 ** np.arange(-2, 5)
    measured = np.array([float(theory.cross_smoothness(float(k))) for k in products])
    witness = lambda i: f"K = {products[i]:g}"
    return (
        Trial(measured, np.full(len(products), 10.0), witness),
        Trial(measured, 1 + products / 4, witness),
    )
