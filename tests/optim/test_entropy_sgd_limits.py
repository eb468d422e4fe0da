"""EntropySGD where something simpler is known: degenerate cases, signs, limits, schedules."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxadv import optim
from jaxadv.optim._entropy_sgd import forms
from jaxadv.optim._entropy_sgd import options as _options
from tests.helpers.entropy_quadratic import W0, grad_fn, join, loss, make_batches, run, split


def test_without_inner_steps_it_is_nesterov_sgd_of_optax(x64):
    tx = optim.entropy_sgd(0.1, n_in=0, noise=0, momentum=0.9, weight_decay=5e-4)
    reference = optax.chain(
        optax.add_decayed_weights(5e-4), optax.sgd(0.1, momentum=0.9, nesterov=True)
    )
    params = expected = split(W0)
    state, reference_state = tx.init(params), reference.init(params)
    for batch in make_batches(1, 8)[:, 0]:
        grads = grad_fn(params, split(batch), None)[0]
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        grads = grad_fn(expected, split(batch), None)[0]
        updates, reference_state = reference.update(grads, reference_state, expected)
        expected = optax.apply_updates(expected, updates)
    np.testing.assert_allclose(join(params), join(expected), rtol=0, atol=1e-15)


def test_one_inner_step_without_noise_is_sgd(x64):
    plain = dict(noise=0, new_weight=1, momentum=0, inner_momentum=0, weight_decay=0)
    tx = optim.entropy_sgd(0.5, n_in=1, inner_learning_rate=0.2, **plain)
    batches = make_batches(1)
    params = split(W0)
    state = optax.sgd(0.1).init(params)
    path = []
    for batch in batches[:, 0]:
        grads = grad_fn(params, split(batch), None)[0]
        updates, state = optax.sgd(0.1).update(grads, state, params)
        params = optax.apply_updates(params, updates)
        path.append(join(params))
    np.testing.assert_allclose(run(tx, batches), np.stack(path), rtol=0, atol=1e-15)


def test_second_order_with_zero_variance_is_first_order_without_gamma(x64):
    # new_weight = 1 keeps only the last iterate, whose variance is exactly zero.
    common = dict(noise=0, new_weight=1.0, n_in=20, gamma=0.5)
    batches = make_batches(20)
    first = run(optim.entropy_sgd(0.1, **common), batches)
    second = run(optim.entropy_sgd(0.1, second_order=True, **common), batches)
    np.testing.assert_array_equal(first, second)
    second = run(optim.entropy_sgd(0.1, second_order=True, scale_by_gamma=True, **common), batches)
    np.testing.assert_array_equal(first, second)


def test_without_gamma_the_chain_forgets_its_anchor(x64):
    tx = optim.entropy_sgd(1.0, noise=0, gamma=0, new_weight=1, momentum=0, weight_decay=0, n_in=20)
    batches = make_batches(20, 3)
    sgd = optax.sgd(0.1, momentum=0.9, nesterov=True)
    params, path = split(W0), []
    for batch in batches:
        state = sgd.init(params)
        for b in batch:
            updates, state = sgd.update(grad_fn(params, split(b), None)[0], state, params)
            params = optax.apply_updates(params, updates)
        path.append(join(params))
    np.testing.assert_allclose(run(tx, batches), np.stack(path), rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    ("preset", "descends"),
    [(None, True), ("ucla_exact", True), ("lua", True), ("paper_fixed", True)]
    + [("paper_literal", False)],
)
@pytest.mark.parametrize("second_order", [False, True])
def test_only_the_printed_sign_climbs_a_convex_loss(x64, preset, descends, second_order):
    params = split(W0)
    tx = optim.entropy_sgd(0.1, preset=preset, second_order=second_order, noise=0, weight_decay=0)
    grads = grad_fn(params, split(np.zeros(3)), None)[0]
    updates, _ = tx.update(
        grads, tx.init(params), params, grad_fn=grad_fn, batches=split(np.zeros((20, 3)))
    )
    change = loss(optax.apply_updates(params, updates)) - loss(params)
    assert (change < -1e-2) if descends else (change > 1e-2)


def test_theory_preset_moves_by_the_gradient_of_the_local_entropy(x64):
    """theta - eta gamma (theta - E[theta']) = theta - eta grad(-F), known for a quadratic."""
    lam, minimum, theta, eta, gamma = 2.0, 1.5, -0.5, 0.25, 1.0
    params = jnp.full(20_000, theta)
    tx = optim.entropy_sgd(
        eta,
        key=jax.random.key(0),
        preset="theory",
        gamma=gamma,
        n_in=400,
        inner_learning_rate=0.05,
        new_weight=0.05,
    )
    updates, _ = tx.update(
        None,
        tx.init(params),
        params,
        grad_fn=lambda w, batch, carry: (lam * (w - minimum), carry),
        batches=(),
    )
    exact = -eta * gamma * (theta - (gamma * theta + lam * minimum) / (gamma + lam))
    np.testing.assert_allclose(np.mean(updates), exact, rtol=0.01)


def test_newton_matrix_needs_beta(x64):
    """On a quadratic, gamma - beta gamma^2 Sigma = gamma lambda / (gamma + lambda) exactly."""
    lam, gamma, beta = 2.0, 1.0, 4.0
    variance = jnp.array([1 / (beta * (lam + gamma))])
    common = {"learning_rate": 1.0, "key": jax.random.key(0), "gamma": gamma}
    common |= {"noise": 1 / beta, "noise_convention": "temperature", "second_order": True}
    offset = jnp.array([-1.0])
    direction = {
        aware: forms.entropy_direction(
            _options.resolve(None, common | {"beta_aware": aware}),
            offset,
            variance,
            jnp.zeros([], jnp.int32),
        )
        for aware in (True, False)
    }
    np.testing.assert_allclose(direction[True], [(gamma + lam) / lam], rtol=1e-14)
    np.testing.assert_allclose(direction[False], [1 / (1 - gamma / (beta * 3))], rtol=1e-14)


def test_beta_aware_newton_step_heads_for_the_minimum_of_a_quadratic(x64):
    lam, minimum, theta, step = 2.0, 1.5, -0.5, 0.05
    params = jnp.full(4000, theta)
    tx = optim.entropy_sgd(
        1.0,
        key=jax.random.key(1),
        preset="theory",
        gamma=1.0,
        noise=0.25,
        n_in=4000,
        inner_learning_rate=step,
        new_weight=0.002,
        second_order=True,
        beta_aware=True,
    )
    updates, _ = tx.update(
        None,
        tx.init(params),
        params,
        grad_fn=lambda w, batch, carry: (lam * (w - minimum), carry),
        batches=(),
    )
    # The finite step inflates the variance by 1 / (1 - step * 3 / 2), and nothing else is inexact:
    # with step -> 0 the Newton step is minimum - theta; without beta it would be 2/3 * 12/11 of it.
    inflation = 1 / (1 - step * (lam + 1) / 2)
    exact = (2 / 3) * (minimum - theta) / (1 - inflation / 3)
    np.testing.assert_allclose(np.mean(updates), exact, rtol=0.01)


def test_curvature_is_clamped(x64):
    options = _options.resolve(
        None, {"learning_rate": 0.1, "noise": 0, "gamma": 2.0, "second_order": True}
    )
    direction = forms.entropy_direction(
        options, jnp.array([-1.0, -1.0]), jnp.array([0.46, 5.0]), jnp.zeros([], jnp.int32)
    )
    np.testing.assert_allclose(direction, [10.0, 10.0])


def test_scoping_strengthens_the_pull(x64):
    common = dict(noise=0, momentum=0, weight_decay=0, n_in=20, gamma=0.5)
    batches = make_batches(20, 2, scale=0.0)
    scoped = run(optim.entropy_sgd(0.1, scoping=0.5, **common), batches)
    by_hand = run(optim.entropy_sgd(0.1, **(common | {"gamma": 0.75})), batches[:1])
    np.testing.assert_allclose(scoped[0], by_hand[0], rtol=0, atol=1e-15)
    second = run(
        optim.entropy_sgd(0.1, **(common | {"gamma": 0.5 * 1.5**2})),
        batches[:1],
        params=split(by_hand[0]),
    )
    np.testing.assert_allclose(scoped[1], second[0], rtol=0, atol=1e-15)


def test_schedules_count_outer_steps_and_rates_can_be_tied(x64):
    schedule = optax.piecewise_constant_schedule(0.1, {1: 0.5})  # 0.1, then 0.05
    batches = make_batches(20, 2)
    common = dict(noise=0, momentum=0)
    tied = run(optim.entropy_sgd(schedule, inner_learning_rate="tied", **common), batches)
    both = run(optim.entropy_sgd(schedule, inner_learning_rate=schedule, **common), batches)
    np.testing.assert_array_equal(tied, both)
    second = run(
        optim.entropy_sgd(0.05, inner_learning_rate=0.05, **common),
        batches[1:],
        params=split(tied[0]),
    )
    np.testing.assert_allclose(tied[1], second[0], rtol=0, atol=1e-9)


def test_the_carry_flows_through_the_chain_and_across_steps():
    init = {"count": jnp.zeros([], jnp.int32), "sum": 0.0, "key": jax.random.key(4)}

    def counting(params, batch, carry):
        grads, _ = grad_fn(params, batch, None)
        total = carry["sum"] + batch["bias"][0]
        next_key = jax.random.fold_in(carry["key"], 1)
        return grads, {"count": carry["count"] + 1, "sum": total, "key": next_key}

    tx = optim.entropy_sgd(0.1, noise=0, n_in=4, init_carry=init)
    params = jax.tree.map(lambda x: x.astype(jnp.float32), split(W0))
    state = tx.init(params)
    batches = make_batches(4, 2).astype(np.float32)
    structure = jax.tree.map(lambda x: (x.shape, x.dtype), state)
    update = jax.jit(lambda s, p, b, c=None: tx.update(None, s, p, carry=c, **call(b)))
    call = lambda batch: dict(grad_fn=counting, batches=batch)
    for batch in batches:
        _, state = update(state, params, split(batch))
        assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == structure
    assert int(state.carry["count"]) == 8
    np.testing.assert_allclose(state.carry["sum"], batches[:, :, 2].sum(), rtol=1e-5)
    _, state = update(state, params, split(batches[0]), tx.init(params).carry)
    assert int(state.carry["count"]) == 4  # an explicit carry replaces the one in the state


def test_program_does_not_grow_with_the_number_of_inner_steps():
    sizes = []
    for n_in in (5, 50):
        tx = optim.entropy_sgd(0.1, key=jax.random.key(0), n_in=n_in, second_order=True)
        params = jax.tree.map(lambda x: x.astype(jnp.float32), split(W0))
        batches = split(np.zeros((n_in, 3), np.float32))
        update = jax.jit(lambda s, p, b, tx=tx: tx.update(None, s, p, grad_fn=grad_fn, batches=b))
        sizes.append(len(update.lower(tx.init(params), params, batches).as_text()))
    assert abs(sizes[1] - sizes[0]) < 0.01 * sizes[0]
