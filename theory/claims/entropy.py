"""Claims on EntropySGD and on the toy: sections 5, 6 of the paper, formulas D, E2, E9 to E29."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxadv import optim, theory

from .. import surfaces
from .registry import Trial, claim

AXIS = np.linspace(-2, 2, 21)
GAMMAS = (0.1, 1.0, 5.0)


@functools.cache
def _entropies():
    """Smoothed toy losses: both models, both norms, three scopes."""
    found = {}
    for model in ("linear", "swish"):
        for kind in ("l2", "linf"):
            loss = surfaces.toy_loss(model, kind)
            for gamma in GAMMAS:
                found[model, kind, gamma] = theory.local_entropy_grid(
                    loss, [AXIS, AXIS], gamma=gamma, num_nodes=9
                )
    return found


def _cases(only=None):
    return [(k, e) for k, e in _entropies().items() if only is None or k[0] == only]


def _witness(cases):
    return lambda i: "{} model, {}, gamma = {:g}".format(*cases[i][0])


def _measure(entropy) -> float:
    return float(np.abs(np.linalg.eigvalsh(entropy.hessian)).max())


@claim("Theorem 3", "Theorem 3", "grad F is (gamma + gamma^2 sup |Sigma|_F)-Lipschitz")
def _theorem3(rng, count):
    del rng, count
    cases = _cases()
    measured = np.array([_measure(e) for _, e in cases])
    bounds = [theory.covariance_bounds(e.covariance, gamma=k[2]).paper for k, e in cases]
    return Trial(measured, np.array(bounds), _witness(cases)), None


@claim(
    "Theorem 3, spectral",
    "Theorem 3; E15",
    "grad F is max(gamma, gamma^2 sup lambda_max(Sigma) - gamma)-Lipschitz",
)
def _spectral(rng, count):
    del rng, count
    cases = _cases()
    measured = np.array([_measure(e) for _, e in cases])
    bounds = [theory.covariance_bounds(e.covariance, gamma=k[2]).spectral for k, e in cases]
    return Trial(measured, np.array(bounds), _witness(cases)), None


@claim(
    "Smoothed convex loss",
    "formulas D.2 (c)",
    "-F is gamma-smooth if L is convex (linear model)",
)
def _convex(rng, count):
    del rng, count
    cases = _cases("linear")
    measured = np.array([_measure(e) for _, e in cases])
    return Trial(measured, np.array([k[2] for k, _ in cases]), _witness(cases)), None


@claim(
    "Smoothed Lipschitz loss",
    "formulas D.2 (e)",
    "grad F is max(gamma, (G^2 + G sqrt(G^2 + 4 gamma))/2)-Lipschitz if L is G-Lipschitz",
)
def _lipschitz(rng, count):
    del rng, count
    slopes, measured, bounds = (1.0, 2.0, 6.0), [], []
    for slope in slopes:
        entropy = theory.local_entropy(
            lambda t, g=slope: -g * jnp.abs(t[0]), [0.0], gamma=1.0, radius=slope + 14
        )
        measured.append(abs(float(entropy.hessian[0, 0])))
        bounds.append(theory.lipschitz_bound(gamma=1.0, lipschitz=slope))
    return Trial(
        np.array(measured), np.array(bounds), lambda i: f"L = -{slopes[i]:g} |t|, gamma = 1"
    ), None


@claim(
    "Covariance of the Gaussian",
    "eqs. 61 to 68; E17",
    "exp(-gamma/2 |theta - theta'|^2) has covariance gamma",
    "1/gamma",
)
def _covariance(rng, count):
    del rng, count
    found = [
        float(theory.local_entropy(lambda t: 0.0 * t[0], [0.3], gamma=g).covariance[0, 0])
        for g in GAMMAS
    ]
    gammas, rounding = np.array(GAMMAS), np.full(len(GAMMAS), 1e-9)
    witness = lambda i: f"gamma = {GAMMAS[i]:g}, distance of the covariance"
    return (
        Trial(np.abs(found - gammas), rounding, witness),
        Trial(np.abs(found - 1 / gammas), rounding, witness),
    )


@claim(
    "Optima of -F",
    "appendix C; E18",
    "the optimal points of -F are those of L (distance at most one cell of the grid)",
)
def _optima(rng, count):
    del rng, count
    axis = np.linspace(-2, 2, 41)
    cases, distances = [], []
    for kind in ("l2", "linf"):
        loss = surfaces.dataset_loss(kind)
        values = surfaces.on_grid(loss, axis)
        for gamma in (1.0, 10.0):
            smoothed = theory.local_entropy_grid(loss, [axis, axis], gamma=gamma, num_nodes=6)
            places = [
                axis[list(np.unravel_index(v.argmin(), v.shape))]
                for v in (values, smoothed.smoothed)
            ]
            cases.append((kind, gamma, *(p.round(2).tolist() for p in places)))
            distances.append(np.linalg.norm(places[0] - places[1]))
    witness = lambda i: "100 points, {}, gamma = {:g}: argmin L {}, argmin -F {}".format(*cases[i])
    return Trial(np.array(distances), np.full(len(cases), 0.1 * np.sqrt(2)), witness), None


@claim(
    "Algorithm 1, line 10",
    "Algorithm 1; E2",
    "an inner step with the printed sign of the gradient does not increase a convex loss",
    "the sign of gradient descent",
)
def _sign(rng, count):
    count = min(count, 200)
    curvature = rng.uniform(0.1, 3.0, size=(count, 4))
    start = rng.normal(size=(count, 4))
    losses = []
    with jax.enable_x64(True):
        for sign in (-1, 1):
            moved = optim.langevin_step(
                None, jnp.asarray(start), jnp.asarray(sign * curvature * start),
                jnp.asarray(start), step_size=0.1, gamma=0.03,
            )  # fmt: skip
            losses.append(np.sum(curvature * np.asarray(moved) ** 2, axis=1) / 2)
    before = np.sum(curvature * start**2, axis=1) / 2
    witness = lambda i: f"L = sum c t^2/2 with c = {curvature[i].round(3).tolist()}, loss after"
    return Trial(losses[0], before, witness), Trial(losses[1], before, witness)


@claim(
    "Newton matrix of 2ndEnSGD",
    "Algorithm 1; E29",
    "gamma - gamma^2 Sigma is the Hessian of the smoothed loss at temperature 1/beta",
    "gamma - beta gamma^2 Sigma",
)
def _newton(rng, count):
    del rng, count
    betas, printed, corrected = (0.5, 4.0, 100.0), [], []
    lam, gamma = 2.0, 1.5
    for beta in betas:
        entropy = theory.local_entropy(lambda t: lam * t[0] ** 2 / 2, [0.4], gamma=gamma, beta=beta)
        variance, exact = float(entropy.covariance[0, 0]), gamma * lam / (gamma + lam)
        printed.append(abs(gamma - gamma**2 * variance - exact))
        corrected.append(abs(gamma - beta * gamma**2 * variance - exact))
    rounding = np.full(len(betas), 1e-9)
    witness = lambda i: f"quadratic, beta = {betas[i]:g}, distance to gamma lambda/(gamma + lambda)"
    return (
        Trial(np.array(printed), rounding, witness),
        Trial(np.array(corrected), rounding, witness),
    )


@claim(
    "Exact attack of the swish neuron",
    "section 5.1; E22",
    "psi(clip(u*, u0 - R, u0 + R)) is the maximum over the ball",
)
def _closed_form(rng, count):
    thetas = rng.uniform(-2, 2, size=(min(count, 300), 2))
    angles = np.linspace(0, 2 * np.pi, 2001)
    circle = np.stack([np.cos(angles), np.sin(angles)], 1)
    radii = np.linspace(0, 1, 41)[:, None, None]
    ball = {
        "l2": (radii * circle[None]).reshape(-1, 2),
        "linf": np.stack(np.meshgrid(*[np.linspace(-1, 1, 101)] * 2), -1).reshape(-1, 2),
    }
    measured, bounds = [], []
    for kind, deltas in ball.items():
        with jax.enable_x64(True):
            exact = jax.jit(jax.vmap(surfaces.toy_loss("swish", kind)))(jnp.asarray(thetas))
        bounds.append(np.asarray(exact))
        points = np.array(theory.TOY_POINT) + theory.TOY_EPS * deltas
        for theta in thetas:
            u = points @ theta
            measured.append(np.logaddexp(0, -u / (1 + np.exp(-u))).max())
    places = np.concatenate([thetas, thetas])
    witness = lambda i: f"theta = {places[i].round(4).tolist()}"
    return Trial(np.array(measured), np.concatenate(bounds), witness), None


@claim(
    "The smooth corner of the swish neuron",
    "section 5.1; E9",
    "theta_1 > 1, theta_2 < -1 has interior maximizers (regime 0) under Linf",
)
def _corner(rng, count):
    thetas = np.stack([rng.uniform(1, 2, count), rng.uniform(-2, -1, count)], 1)
    thetas[0] = (2.0, -2.0)
    with jax.enable_x64(True):
        attack = lambda t: theory.toy_attack(t, model="swish", norm="linf").regime
        regimes = np.asarray(jax.jit(jax.vmap(attack))(jnp.asarray(thetas)))
    witness = lambda i: f"theta = {thetas[i].round(3).tolist()}: a vertex, |regime|"
    return Trial(np.abs(regimes).astype(float), np.zeros(count), witness), None


@claim(
    "(MON) for exact attacks",
    "formulas A.9",
    "minus the monotonicity quotient of the swish loss is at most w",
)
def _monotone(rng, count):
    measured, bounds = [], []
    thetas = rng.uniform(-2, 2, size=(2, count, 2))
    kinds: tuple[Any, ...] = ("l2", "linf")
    for kind in kinds:
        with jax.enable_x64(True):
            gradient = lambda t, n=kind: theory.toy_gradient(t, model="swish", norm=n)
            a, b = (np.asarray(jax.jit(jax.vmap(gradient))(jnp.asarray(t))) for t in thetas)
        step = thetas[0] - thetas[1]
        measured.append(-np.sum((a - b) * step, 1) / np.sum(step**2, 1))
        bounds.append(np.full(count, float(theory.toy_weak_convexity(norm=kind))))
    witness = lambda i: f"pair {i % count}, {'l2' if i < count else 'linf'}"
    return Trial(np.concatenate(measured), np.concatenate(bounds), witness), None
