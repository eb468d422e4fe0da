"""Claims on Algorithm 1 and the experiments: E2, E27, E28, E29, E30, E34."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxadv import attacks, optim, theory

from .quadrature import Line
from .registry import IMPLIED, PRINTED, Trial, claim, within

ETA, GAMMA, NOISE = 0.1, 0.03, 1e-4  # inner step, scope and noise of the paper


@claim(
    "Algorithm 1, line 10",
    "Algorithm 1; E2",
    PRINTED,
    "an inner step with the printed sign of the gradient does not increase a convex loss",
    "the sign of gradient descent",
    sabotage={
        "the printed sign in the correction": dict(signs=(-1.0, -1.0)),
        "the corrected sign in both": dict(signs=(1.0, 1.0)),
    },
    cost=20,
)
def _sign(rng, count, *, signs=(-1.0, 1.0)):
    curvature = rng.uniform(0.1, 3.0, size=(count, 4))
    start = rng.normal(size=(count, 4))
    losses = []
    with jax.enable_x64(True):
        for sign in signs:
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
    PRINTED,
    "gamma - gamma^2 Sigma is the Hessian of the smoothed loss at temperature 1/beta",
    "gamma - beta gamma^2 Sigma",
    sabotage={
        "beta^2 for beta": dict(power=2.0),
        "beta = 1 alone": dict(spread=0.0),
    },
    cost=20,
)
def _newton(rng, count, *, power=1.0, spread=1.0):
    beta = 10.0 ** (spread * rng.uniform(-0.3, 1.5, size=count))
    lam, gamma = rng.uniform(0.5, 3, size=(2, count))
    # beta L and beta gamma in place of L and gamma.
    line = Line(lambda t: (beta * lam)[:, None] * t**2 / 2, beta * gamma, 16.0, 0.05)
    variance = line.moments(np.full(count, 0.4))[1]
    exact = gamma * lam / (gamma + lam)
    printed = np.abs(gamma - gamma**2 * variance - exact)
    corrected = np.abs(gamma - beta**power * gamma**2 * variance - exact)
    words = lambda i: (
        f"quadratic, lambda = {lam[i]:.2f}, gamma = {gamma[i]:.2f}, beta = {beta[i]:.2f}, distance "
        "to gamma lambda/(gamma + lambda)"
    )
    return within(printed, 1e-9, words), within(corrected, 1e-9, words)


def _temperatures(rng, count: int, noises) -> dict[str, float]:
    """Temperatures that chains with the noise of the paper and of the code really have."""
    curvature = np.resize([0.5, 1.0, 3.0], max(count, 600))
    found = {}
    with jax.enable_x64(True):
        for name, convention in noises.items():
            std = float(jnp.asarray(optim.noise_std(NOISE, step_size=ETA, convention=convention)))
            positions, _ = theory.langevin_trace(
                jax.random.key(int(rng.integers(2**31))), jnp.zeros(len(curvature)),
                lambda t: jnp.asarray(curvature) * t,
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
    IMPLIED,
    "the chain of Algorithm 1 samples the measure of Theorem 3, 1/beta = 1 (relative distance)",
    "1/beta = eps_E^2/2 with the paper's noise, eps_E^2 with the code's",
    sabotage={
        "the two noises exchanged": dict(noises={"paper": "ucla", "code": "paper"}),
        "the code's noise twice": dict(noises={"paper": "ucla", "code": "ucla"}),
    },
)
def _temperature(rng, count, *, noises={"paper": "paper", "code": "ucla"}):  # noqa: B006
    found = _temperatures(rng, count, noises)
    names, values = list(found), np.array(list(found.values()))
    expected = np.array([NOISE**2 / (2 if n.startswith("paper") else 1) for n in names])
    words = lambda i: f"{names[i]}: temperature {values[i]:.2e}, distance"
    return within(np.abs(values - 1), 0.15, words), within(
        np.abs(values / expected - 1), 0.15, words
    )


@claim(
    "alpha = 0.75",
    "Algorithm 1, line 13; E28",
    IMPLIED,
    "weight 0.75 for the new sample (paper) is the average of the code with beta1 = 0.75",
    "the code gives 0.75 to the old average: 0.25 for the new sample",
    sabotage={
        "0.75 for the new sample in the correction": dict(new=0.75),
        "a code that gives 0.75 to the new sample": dict(old=0.25),
    },
    cost=40,
)
def _alpha(rng, count, *, new=0.25, old=0.75):
    iterates = rng.normal(size=(20, count))
    of_code = np.zeros(count)
    for iterate in iterates:
        of_code = old * of_code + (1 - old) * iterate
    printed, corrected = (theory.average_weights(20, weight) for weight in (0.75, new))
    lags = f"mean lags {printed.mean_lag:.3f} and {corrected.mean_lag:.3f}"
    apart = [np.abs(found.weights[1:] @ iterates - of_code) for found in (printed, corrected)]
    return within(apart[0], 1e-12, lambda i: f"{lags}, averages"), within(apart[1], 1e-12, "chain")


@claim(
    "Steps of TRADES",
    "TRADES set-up; E30",
    IMPLIED,
    "10 steps of .003 take PGD from the image to the boundary, eps = .031",
    "those of the command line do: 2/255 and 8/255",
    sabotage={
        "steps of .003 for the radius 8/255": dict(code=(8 / 255, 0.003)),
        "TRADES's own step .007": dict(paper=(0.031, 0.007)),
    },
    cost=60,
)
def _steps(rng, count, *, paper=(0.031, 0.003), code=(8 / 255, 2 / 255)):
    weights = jnp.asarray(rng.normal(size=(16, 2)), jnp.float32)
    images = jnp.asarray(rng.uniform(0.2, 0.8, size=(count, 4, 4, 1)), jnp.float32)
    trials = []
    for eps, step in (paper, code):
        found = attacks.pgd(
            jax.random.key(0), lambda x: x.reshape(len(x), -1) @ weights, images,
            jnp.zeros(count, jnp.int32), norm="linf", eps=eps, step_size=step, num_steps=10,
            init="zero",
        )  # fmt: skip
        reach = np.abs(np.asarray(found) - np.asarray(images)).reshape(count, -1).max(1)
        words = lambda i, r=reach: f"reached {r[i]:.4f}"
        trials.append(Trial(np.full(count, eps - 1e-6), reach.astype(float), words))
    return trials[0], trials[1]


@claim(
    "Algorithm 1 as printed trains",
    "Algorithm 1; E34",
    IMPLIED,
    "with its sign corrected, without momentum and with the outer step eta gamma, 100 outer steps "
    "halve a quadratic loss",
    "with the outer step of the code, eta (theta - mu) and momentum .9",
    sabotage={
        "the printed step in the correction": dict(presets=("paper_literal", "paper_literal")),
        "2,000 outer steps": dict(steps=2000),
    },
    cost=80,
)
def _trains(rng, count, *, presets=("paper_literal", None), steps=100):
    curvature = jnp.asarray(rng.uniform(0.5, 2, size=(count, 3)), jnp.float32)
    start = jnp.asarray(rng.normal(size=curvature.shape), jnp.float32)
    loss = lambda t: jnp.sum(curvature * t**2, axis=1) / 2
    options: dict[str, Any] = dict(key=None, noise=0.0)
    optimizers = [
        optim.entropy_sgd(0.1, **options)
        if preset is None
        else optim.entropy_sgd(0.1, preset=preset, ascend=False, **options)
        for preset in presets
    ]
    after = []
    for optimizer in optimizers:

        def step(state, _, optimizer=optimizer):
            params, inner = state
            nothing: Any = None  # EntropySGD takes its gradients from grad_fn
            grad_fn = lambda t, _, carry: (curvature * t, carry)
            updates, inner = optimizer.update(nothing, inner, params, grad_fn=grad_fn, batches=())
            return (optax.apply_updates(params, updates), inner), None

        run = jax.jit(lambda s, step=step: jax.lax.scan(step, s, length=steps)[0][0])
        after.append(np.asarray(loss(run((start, optimizer.init(start)))), float))
    bound = np.asarray(loss(start), float) / 2
    words = lambda i: f"curvature {np.asarray(curvature, float)[i].round(2).tolist()}, loss after"
    return Trial(after[0], bound, words), Trial(after[1], bound, words)
