"""EntropySGD against an independent NumPy version, and its degenerate cases."""

import entropy_sgd_numpy
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxadv import optim
from jaxadv.optim import _entropy_sgd, _options

# The golden quadratic: L(w) = w.A.w / 2 - b.w, and minibatches that shift b.
A = np.array([1.0, 0.2, 3.0])
B = np.array([0.3, -1.0, 0.5])
W0 = np.array([1.0, 2.0, -1.0])
NUM_STEPS = 6


def numpy_grad(w, batch):
    return A * w - B + batch


def grad_fn(params, batch, carry):
    return {k: A[s] * params[k] - B[s] + batch[k] for k, s in SLICES.items()}, carry


SLICES = {"bias": slice(2, 3), "kernel": slice(0, 2)}  # in the order of the tree's leaves


def split(vector):
    return {k: jnp.asarray(vector[..., s]) for k, s in SLICES.items()}


def join(params):
    return np.concatenate([params["kernel"], params["bias"]], axis=-1)


def loss(params):
    w = join(params)
    return 0.5 * np.sum(A * w * w) - np.sum(B * w)


def make_batches(n_in, num_steps=NUM_STEPS, scale=0.3):
    return scale * np.random.default_rng(0).normal(size=(num_steps, n_in, 3))


def draws_of(key, n_in, count):
    """The documented noise: fold_in(fold_in(key, count), step), then fold_in by leaf."""
    if n_in == 0:
        return np.zeros((0, 3))
    result = []
    for i in range(n_in):
        step_key = jax.random.fold_in(jax.random.fold_in(key, count), i)
        leaves = [
            jax.random.normal(jax.random.fold_in(step_key, leaf), (size,), jnp.float64)
            for leaf, size in enumerate((1, 2))
        ]
        result.append(np.concatenate([leaves[1], leaves[0]]))
    return np.stack(result)


def run(tx, batches, first_gradients=None, params=None):
    """Slow weights after every outer step, as an array of shape (steps, 3)."""
    params = split(W0) if params is None else params
    state = tx.init(params)
    update = jax.jit(lambda g, s, p, b: tx.update(g, s, p, grad_fn=grad_fn, batches=b))
    path = []
    for t, batch in enumerate(batches):
        grads = (
            None if first_gradients is None else grad_fn(params, split(first_gradients[t]), None)[0]
        )
        updates, state = update(grads, state, params, split(batch))
        params = optax.apply_updates(params, updates)
        path.append(join(params))
    return np.stack(path)


# The code of Chaudhari et al. adds the noise to the gradient: it enters with a minus sign.
CODE, PAPER = -1, 1


def run_numpy(
    step, batches, key, *, n_in, sign_of_noise, zero_start=False, first_gradients=None, **options
):
    theta, M, path = W0.copy(), np.zeros(3) if zero_start else None, []
    for t, batch in enumerate(batches):
        shift = np.zeros(3) if first_gradients is None else first_gradients[t]
        theta, M = step(
            theta,
            M,
            t,
            grad=numpy_grad,
            batches=batch,
            draws=sign_of_noise * draws_of(key, n_in, t),
            first_gradient=numpy_grad(theta, shift),
            **options,
        )
        path.append(theta)
    return np.stack(path)


@pytest.mark.parametrize("noise", [0.0, 0.3])
@pytest.mark.parametrize("n_in", [0, 20])
@pytest.mark.parametrize("preset", [None, "ucla_exact"])
def test_agrees_with_the_reference_code(x64, preset, n_in, noise):
    key, batches = jax.random.key(3), make_batches(n_in)
    first = make_batches(1)[:, 0]
    tx = optim.entropy_sgd(0.1, key=key, preset=preset, n_in=n_in, noise=noise)
    expected = run_numpy(
        entropy_sgd_numpy.pytorch_step,
        batches,
        key,
        n_in=n_in,
        sign_of_noise=CODE,
        lr=0.1,
        eps=noise,
        zero_start=preset is None,
        first_gradients=first,
    )
    np.testing.assert_allclose(run(tx, batches, first), expected, rtol=0, atol=1e-12)


def test_second_order_agrees_with_numpy(x64):
    # Noise and gamma large enough for the correction to matter: gamma * var is about 0.2.
    key, batches = jax.random.key(5), make_batches(20)
    common = dict(noise=0.5, gamma=0.6)
    tx = optim.entropy_sgd(0.1, key=key, second_order=True, **common)
    expected = run_numpy(
        entropy_sgd_numpy.pytorch_step,
        batches,
        key,
        n_in=20,
        sign_of_noise=CODE,
        lr=0.1,
        eps=0.5,
        gamma=0.6,
        zero_start=True,
        second_order=True,
    )
    actual = run(tx, batches)
    first_order = run(optim.entropy_sgd(0.1, key=key, **common), batches)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-12)
    assert np.max(np.abs(actual - first_order)) > 1e-3


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_lua_agrees_with_numpy(x64, noise):
    key, batches = jax.random.key(7), make_batches(20)
    tx = optim.entropy_sgd(1.0, key=key, preset="lua", noise=noise)
    expected = run_numpy(
        entropy_sgd_numpy.lua_step,
        batches,
        key,
        n_in=20,
        sign_of_noise=CODE,
        lr=1.0,
        eps=noise,
        zero_start=True,
    )
    np.testing.assert_allclose(run(tx, batches), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("second_order", [False, True])
@pytest.mark.parametrize("preset", ["paper_literal", "paper_fixed"])
def test_paper_presets_agree_with_numpy(x64, preset, second_order):
    key, batches = jax.random.key(11), make_batches(20)
    tx = optim.entropy_sgd(
        0.1, key=key, preset=preset, noise=0.2, second_order=second_order, inner_learning_rate=0.02
    )
    expected = run_numpy(
        entropy_sgd_numpy.paper_step,
        batches,
        key,
        n_in=20,
        sign_of_noise=PAPER,
        lr=0.1,
        inner_lr=0.02,
        eps=0.2,
        sign=-1 if preset == "paper_literal" else 1,
        outer_gamma=preset == "paper_literal",
        second_order=second_order,
    )
    np.testing.assert_allclose(run(tx, batches), expected, rtol=1e-12, atol=1e-12)


def test_presets_resolve_to_the_documented_table():
    """The table in the docstring is the specification of the presets; it must not drift."""
    doc = optim.entropy_sgd.__doc__
    lines = doc[doc.index("argument   ") :].splitlines()
    columns = [None, "ucla_exact", "lua", "paper_literal", "paper_fixed", "theory"]
    rows = 0
    for line in lines[2:]:
        if line.strip().startswith("==="):
            break
        name, *cells = line.replace("(inert)", "").split()
        if name not in _options.Options._fields:
            continue
        rows += 1
        for preset, cell in zip(columns, cells, strict=True):
            options = _options.resolve(
                {"learning_rate": 0.1, "key": jax.random.key(0)}, preset=preset
            )
            value = getattr(options, name)
            assert (str(value) if isinstance(value, str | bool) else float(value)) == (
                cell if isinstance(value, str | bool) else float(cell)
            ), (name, preset)
    assert rows == 15


def test_explicit_arguments_override_the_preset(x64):
    batches = make_batches(20)
    explicit = optim.entropy_sgd(
        0.1, preset="paper_literal", noise=0, ascend=False, scale_by_gamma=False
    )
    fixed = optim.entropy_sgd(0.1, preset="paper_fixed", noise=0)
    np.testing.assert_array_equal(run(explicit, batches), run(fixed, batches))


# Degenerate cases.


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
        aware: _entropy_sgd.entropy_direction(
            _options.resolve(common | {"beta_aware": aware}, None),
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
        {"learning_rate": 0.1, "noise": 0, "gamma": 2.0, "second_order": True}, None
    )
    direction = _entropy_sgd.entropy_direction(
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
