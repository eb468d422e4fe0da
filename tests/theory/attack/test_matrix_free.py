"""Products with the attack Jacobian against dense matrices; networks in float32 (formulas C.6)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from jaxadv import models, theory

D = 4


def network_loss(activation, x, theta):
    hidden = activation(theta["w1"] @ x.reshape(-1) + theta["b"])
    logits = theta["w2"] @ hidden
    well = 0.5 * theta["kappa"] * jnp.sum((x.reshape(-1) - 0.5 - 0.1 * theta["b"][:D]) ** 2)
    return jax.nn.logsumexp(logits) - logits[0] - well


def smooth_loss(x, theta):
    return network_loss(jnp.tanh, x, theta)


def relu_loss(x, theta):
    return network_loss(jax.nn.relu, x, theta)


def network(seed, kappa, hidden=6):
    rng = np.random.default_rng(seed)
    theta = dict(
        w1=jnp.asarray(rng.normal(size=(hidden, D))), b=jnp.asarray(0.3 * rng.normal(size=hidden)),
        w2=jnp.asarray(rng.normal(size=(3, hidden))), kappa=jnp.asarray(float(kappa)),
    )  # fmt: skip
    return theta, jnp.asarray(rng.uniform(0.2, 0.8, size=(2, 2)))


CASES = {
    "sphere": ("l2", 0.5, 0.0, None, 1),
    "face-l2": ("l2", 0.8, 0.0, (0.0, 1.0), 1),
    "interior": ("l2", 1.0, 30.0, None, 2),
    "face-linf": ("linf", 0.15, 30.0, None, 2),
    "vertex": ("linf", 0.1, 0.0, (0.0, 1.0), 4),
    "face-l1": ("l1", 0.6, 8.0, None, 5),
}


def close(a, b, tol=1e-8):
    a, b = np.asarray(a), np.asarray(b)
    np.testing.assert_allclose(a, b, atol=tol * (1 + np.abs(b).max()))


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_products_and_norms_equal_the_closed_form(x64, norm):
    """T2 and T3 of formulas C.7, -|x - M t|^2/2: the attack is a projection of M t."""
    rng = np.random.default_rng(8)  # not 0: Lanczos starts there, within the row space of m
    m, t, x = rng.normal(size=(4, 6)), rng.normal(size=6), rng.normal(size=4)
    eps, target = (0.7, m @ t) if norm == "l2" else (1.0, m @ t)
    loss = lambda x, t: -0.5 * jnp.sum((x - m @ t) ** 2)
    if norm == "l2":
        rho = np.linalg.norm(target - x)
        n = (target - x) / rho
        x_adv, jacobian = x + eps * n, eps / rho * (np.eye(4) - np.outer(n, n)) @ m
    else:
        x_adv = np.clip(target, x - eps, x + eps)
        jacobian = np.where(np.abs(target - x_adv)[:, None] < 1e-12, m, 0.0)
        assert 0 < np.sum(jacobian[:, 0] != 0) < 4
    free = theory.matrix_free_jacobian(loss, t, x, x_adv, norm=norm, eps=eps)
    assert free.kind == {"l2": "sphere", "linf": "face"}[norm] and free.caveat == ""
    u, w = jnp.asarray(rng.normal(size=6)), jnp.asarray(rng.normal(size=4))
    close(free.jacobian(u), jacobian @ u)
    close(free.jacobian_transpose(w), jacobian.T @ w)
    close(free.norm().value, np.linalg.norm(jacobian, 2))
    close(free.sharp_bound(), free.norm().value)  # -W is a multiple of the identity: equality
    close(free.motion_hessian(u), m.T @ (jacobian @ u))
    close(free.loss_hessian(u), m.T @ (jacobian @ u) - m.T @ m @ u)
    ends = np.linalg.eigvalsh(m.T @ jacobian - m.T @ m)[[0, -1]]
    found = free.smoothness()
    close([found.low.value, found.high.value], ends, 1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_products_and_norms_equal_the_dense_ones(x64, case):
    norm, eps, kappa, bounds, seed = CASES[case]
    theta, x = network(seed, kappa)
    bounds = (-jnp.inf, jnp.inf) if bounds is None else bounds
    options = dict(norm=norm, eps=eps, bounds=bounds)
    dense = theory.attack_jacobian(smooth_loss, theta, x, num_restarts=2, **options)
    hessian = theory.adversarial_hessian(smooth_loss, theta, x, x_adv=dense.x_adv, **options)
    free = theory.matrix_free_jacobian(smooth_loss, theta, x, dense.x_adv, **options)
    assert free.kind == dense.kind == case.split("-")[0]
    assert free.caveat == ""

    rng = np.random.default_rng(3)
    flat, unravel = ravel_pytree(theta)
    u = jnp.asarray(rng.normal(size=flat.shape))
    w = jnp.asarray(rng.normal(size=x.shape))
    rows = [np.asarray(leaf).reshape(D, -1) for leaf in jax.tree.leaves(dense.jacobian)]
    jacobian = np.concatenate(rows, axis=1)
    ravel = lambda tree: ravel_pytree(tree)[0]
    close(free.jacobian(unravel(u)).reshape(-1), jacobian @ u)
    close(ravel(free.jacobian_transpose(w)), jacobian.T @ w.reshape(-1))
    close(ravel(free.loss_hessian(unravel(u))), hessian.total @ u)
    close(ravel(free.frozen_hessian(unravel(u))), hessian.frozen @ u)
    close(ravel(free.motion_hessian(unravel(u))), hessian.motion @ u)
    close(free.curvature.value, dense.certificates.curvature)
    close(free.norm().value, dense.norm)
    close(free.sharp_bound(), dense.sharp_bound)
    close(free.paper_bound(), dense.paper_bound)
    eigenvalues = np.linalg.eigvalsh(hessian.total)
    found = free.smoothness()
    close([found.low.value, found.high.value], eigenvalues[[0, -1]], 1e-7)
    for name in ("gap", "residual", "multiplier", "margin", "slack"):
        close(*(min(float(getattr(r, name)), 1e9) for r in (free, dense.certificates)))
    if case == "sphere":
        close(free.bordered_sigma().value, dense.bordered_sigma)
        slope = jax.grad(smooth_loss)
        mixed = jax.jacobian(slope, argnums=1)(dense.x_adv, theta)
        mixed = np.concatenate([leaf.reshape(D, -1) for leaf in jax.tree.leaves(mixed)], axis=1)
        close(free.mixed(unravel(u)).reshape(-1), mixed @ u)
        close(ravel(free.mixed_transpose(w)), mixed.T @ w.reshape(-1))
        close(free.mixed_norm().value, np.linalg.norm(mixed, 2))
        curved = jax.jacobian(slope)(dense.x_adv, theta).reshape(D, D)
        close(free.input_hessian(w).reshape(-1), curved @ w.reshape(-1))


def test_irregular_attacks_have_no_products(x64):
    theta, x = network(1, 0.0)
    free = theory.matrix_free_jacobian(smooth_loss, theta, x, x, norm="l2", eps=0.5)
    assert free.kind == "unconverged"
    for call in (free.norm, free.sharp_bound, lambda: free.jacobian(theta)):
        with pytest.raises(ValueError, match="the attack is unconverged.*climb_attack"):
            call()
    flat = jax.tree.map(jnp.zeros_like, theta)
    free = theory.matrix_free_jacobian(smooth_loss, flat, x, x, norm="l2", eps=0.5)
    assert free.kind == "degenerate"
    with pytest.raises(ValueError, match="part='all'"):
        free.smoothness("all")
    with pytest.raises(ValueError, match=r"x_adv has shape \(3,\)"):
        theory.matrix_free_jacobian(smooth_loss, theta, x, jnp.ones(3), norm="l2", eps=0.5)


@pytest.mark.slow
def test_climbing_reaches_the_optimum_and_never_descends(x64):
    for case in ("sphere", "face-linf"):
        norm, eps, kappa, _, seed = CASES[case]
        theta, x = network(seed, kappa)
        options = dict(norm=norm, eps=eps, bounds=(-jnp.inf, jnp.inf))
        x_adv = theory.climb_attack(smooth_loss, theta, x, x, **options)
        assert smooth_loss(x_adv, theta) >= smooth_loss(x, theta)
        free = theory.matrix_free_jacobian(smooth_loss, theta, x, x_adv, **options)
        assert free.kind == case.split("-")[0] and free.relative_residual < 1e-9


@pytest.mark.slow
def test_a_relu_network_comes_with_the_caveat(x64):
    """Erratum E21; and the dtype of the inputs is respected."""
    theta, x = network(1, 0.0, hidden=400)
    theta, x = jax.tree.map(lambda leaf: leaf.astype(jnp.float32) / 3, (theta, x))
    options = dict(norm="l2", eps=0.5)
    x_adv = theory.climb_attack(relu_loss, theta, x, x, newton_steps=0, **options)
    free = theory.matrix_free_jacobian(relu_loss, theta, x, x_adv, tol=0.5, **options)
    assert "E21" in free.caveat and free.kink > 0.1
    assert free.jacobian(theta).dtype == jnp.float32


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["relu", "swish"])
def test_preact_resnet_in_float32(activation):
    module = models.preact_resnet18(10, width=16, activation=activation)
    images = jax.random.uniform(jax.random.key(0), (4, 32, 32, 3))
    variables = jax.jit(module.init)(jax.random.key(1), images)
    stats = {k: v for k, v in variables.items() if k != "params"}

    def loss(label, x, params):
        logits = module.apply({"params": params, **stats}, x[None], train=False)[0]
        return jax.nn.logsumexp(logits) - logits[label]

    kinds = []
    for i, x in enumerate(images):
        one = functools.partial(loss, jnp.asarray(i))
        options = dict(norm="l2", eps=0.5, bounds=(0.0, 1.0))
        x_adv = theory.climb_attack(one, variables["params"], x, x, newton_steps=5, **options)
        free = theory.matrix_free_jacobian(
            one, variables["params"], x, x_adv, tol=0.3, lanczos_tol=0.05, **options
        )
        kinds.append(free.kind)
        assert ("E21" in free.caveat) == (activation == "relu")
        if free.kind == "degenerate":
            continue  # in float32, the last bits of the processor decide
        measured = free.norm()
        assert 0 < measured.value <= free.sharp_bound() * 1.05
        assert np.isfinite(measured.error)
    assert kinds.count("degenerate") < 3 and "unconverged" not in kinds
