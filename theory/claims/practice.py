"""Claims on Algorithm 1, sharpness and the experiments: E16, E23, E27, E28, E30, E34."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxadv import attacks, optim, theory

from .registry import Trial, claim

ETA, GAMMA, NOISE = 0.1, 0.03, 1e-4  # inner step, scope and noise of the paper


@claim(
    "Theorem 3 on all of R^m",
    "Theorem 3; E16",
    "grad F is Lipschitz on bounded sets, and with a Lipschitz loss one constant serves all of "
    "them (L = -G |t|, |theta| up to 1000)",
)
def _unbounded(rng, count):
    del rng, count
    cases, measured, bounds = [], [], []
    for slope in (1.0, 4.0):
        for place in (0.0, 1.0, 30.0, 1000.0):
            found = theory.local_entropy(
                lambda t, g=slope: -g * jnp.abs(t[0]), [place], gamma=1.0, radius=slope + 12
            )
            cases.append((slope, place))
            measured.append(float(found.covariance[0, 0]))
            bounds.append(theory.lipschitz_variance_bound(gamma=1.0, lipschitz=slope))
    words = lambda i: "G = {:g}, theta = {:g}".format(*cases[i])
    return Trial(np.array(measured), np.array(bounds), words), None


@claim(
    "Sharpness at a kink",
    "eq. 74; E23",
    "sharpness grows like r^2 at a minimum of the adversarial loss (deviation of the exponent)",
    "at the kink of the collapsed linear model it grows like r, by (eps - |mean yx|)/2 at least",
)
def _sharpness(rng, count):
    del rng, count
    points, labels = theory.toy_dataset()
    mean = float(np.linalg.norm(np.mean(labels[:, None] * points, 0)))
    eps = mean + 0.3  # above the threshold of collapse: theta = 0 is the minimum
    loss = lambda t: theory.toy_dataset_loss(t, points, labels, norm="l2", eps=eps)
    orders, lower = [], []
    for radius in (0.1, 0.01):
        options = dict(num_starts=2, num_steps=40)
        key, zero = jax.random.key(0), np.zeros(2)
        orders.append(theory.sharpness_order(key, loss, zero, radius=radius, **options))
        found = theory.sharpness(key, loss, zero, radius=radius, **options)
        lower.append((0.3 * radius / 2, found.increase))
    words = lambda i: f"100 points, eps = {eps:.3f}, r = {(0.1, 0.01)[i % 2]:g}"
    deviation = np.abs(np.array(orders) - 2)
    measured = np.concatenate([np.abs(np.array(orders) - 1), [a for a, _ in lower]])
    bounds = np.concatenate([np.full(2, 0.1), [b for _, b in lower]])
    return Trial(deviation, np.full(2, 0.1), words), Trial(measured, bounds, words)


@functools.cache
def _temperatures(seed: int) -> dict[str, float]:
    """Temperatures that chains with the noise of the paper and of the code really have."""
    curvature = np.resize([0.5, 1.0, 3.0], 3000)
    found = {}
    with jax.enable_x64(True):
        for name in ("paper", "ucla"):
            std = float(jnp.asarray(optim.noise_std(NOISE, step_size=ETA, convention=name)))
            positions, _ = theory.langevin_trace(
                jax.random.key(seed), jnp.zeros(3000), lambda t: jnp.asarray(curvature) * t,
                num_steps=100, burn_in=150, step_size=ETA, gamma=GAMMA, noise_std=std,
            )  # fmt: skip
            for kappa in (0.5, 1.0, 3.0):
                variance = float(np.var(np.asarray(positions)[:, curvature == kappa]))
                found[f"{name}, curvature {kappa:g}"] = theory.effective_temperature(
                    variance, curvature=kappa + GAMMA, step_size=ETA
                )
    return found


@claim(
    "Temperature of the chain",
    "section 4; E27",
    "the chain of Algorithm 1 samples the measure of Theorem 3, 1/beta = 1 (relative distance)",
    "1/beta = eps_E^2/2 with the paper's noise, eps_E^2 with the code's",
)
def _temperature(rng, count):
    del count
    found = _temperatures(int(rng.integers(2**31)))
    names, values = list(found), np.array(list(found.values()))
    expected = np.array([NOISE**2 / (2 if n.startswith("paper") else 1) for n in names])
    words = lambda i: f"{names[i]}: temperature {values[i]:.2e}, distance"
    bound = np.full(len(names), 0.1)
    return Trial(np.abs(values - 1), bound, words), Trial(
        np.abs(values / expected - 1), bound, words
    )


@claim(
    "alpha = 0.75",
    "Algorithm 1, line 13; E28",
    "weight 0.75 for the new sample (paper) is the average of the code with beta1 = 0.75 "
    "(mean lag in steps)",
    "the code gives 0.75 to the old average: 0.25 for the new sample",
)
def _alpha(rng, count):
    iterates = rng.normal(size=(20, min(count, 100)))
    of_code = np.zeros(iterates.shape[1])
    for iterate in iterates:
        of_code = 0.75 * of_code + 0.25 * iterate
    found = [theory.average_weights(20, w) for w in (0.75, 0.25)]
    apart = np.array([abs(found[0].mean_lag - found[1].mean_lag)])
    words = lambda i: f"mean lags {found[0].mean_lag:.3f} and {found[1].mean_lag:.3f}, distance"
    mean = found[1].weights[1:] @ iterates
    corrected = Trial(np.abs(mean - of_code), np.full(len(mean), 1e-12), lambda i: f"chain {i}")
    return Trial(apart, np.full(1, 1e-9), words), corrected


@claim(
    "Steps of TRADES",
    "TRADES set-up; E30",
    "10 steps of .003 take PGD from the image to the boundary, eps = .031",
    "those of the command line do: 2/255 and 8/255",
)
def _steps(rng, count):
    count = min(count, 64)
    weights = jnp.asarray(rng.normal(size=(16, 2)), jnp.float32)
    images = jnp.full((count, 4, 4, 1), 0.5, jnp.float32)
    reached = {}
    for eps, step in ((0.031, 0.003), (8 / 255, 2 / 255)):
        found = attacks.pgd(
            jax.random.key(0), lambda x: x.reshape(len(x), -1) @ weights, images,
            jnp.zeros(count, jnp.int32), norm="linf", eps=eps, step_size=step, num_steps=10,
            init="zero",
        )  # fmt: skip
        reached[eps] = np.abs(np.asarray(found) - 0.5).reshape(count, -1).max(1).astype(float)
    trials = [
        Trial(np.full(count, eps - 1e-6), reach, lambda i, r=reach: f"reached {r[i]:.4f}")
        for eps, reach in reached.items()
    ]
    return trials[0], trials[1]


@claim(
    "Algorithm 1 as printed trains",
    "Algorithm 1; E34",
    "with its sign corrected, without momentum and with the outer step eta gamma, 100 outer steps "
    "halve a quadratic loss",
    "with the outer step of the code, eta (theta - mu) and momentum .9",
)
def _trains(rng, count):
    curvature = jnp.asarray(rng.uniform(0.5, 2, size=(min(count, 50), 3)), jnp.float32)
    start = jnp.asarray(rng.normal(size=curvature.shape), jnp.float32)
    loss = lambda t: jnp.sum(curvature * t**2, axis=1) / 2
    options: dict[str, Any] = dict(key=None, noise=0.0)
    optimizers = {
        "printed": optim.entropy_sgd(0.1, preset="paper_literal", ascend=False, **options),
        "code": optim.entropy_sgd(0.1, **options),
    }
    after = {}
    for name, optimizer in optimizers.items():

        def step(state, _, optimizer=optimizer):
            params, inner = state
            nothing: Any = None  # EntropySGD takes its gradients from grad_fn
            grad_fn = lambda t, _, carry: (curvature * t, carry)
            updates, inner = optimizer.update(nothing, inner, params, grad_fn=grad_fn, batches=())
            return (optax.apply_updates(params, updates), inner), None

        run = jax.jit(lambda s, step=step: jax.lax.scan(step, s, length=100)[0][0])
        after[name] = np.asarray(loss(run((start, optimizer.init(start)))), float)
    bound = np.asarray(loss(start), float) / 2
    words = lambda i: f"curvature {np.asarray(curvature, float)[i].round(2).tolist()}, loss after"
    return Trial(after["printed"], bound, words), Trial(after["code"], bound, words)
