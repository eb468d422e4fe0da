"""AWP against the published algorithm in NumPy float64, alone, under SGD and inside EntropySGD."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxadv import optim, training
from jaxadv.optim._awp import awp_perturbation
from tests.references import awp as awp_numpy
from tests.references import entropy_sgd as entropy_sgd_numpy

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(7, 5)), RNG.integers(0, 3, 7)
SHAPES = {"w1": (5, 4), "b1": (4,), "scale": (4,), "shift": (4,), "w2": (4, 3), "b2": (3,)}
P = {k: RNG.normal(size=shape) + (k == "scale") for k, shape in SHAPES.items()}


def loss_fn(p, stats, x, y):
    """The network of awp_numpy; the auxiliary output is the moved running mean and variance."""
    h = x @ p["w1"] + p["b1"][None]
    mean, var = h.mean(0), h.var(0)
    z = (h - mean[None]) / jnp.sqrt(var + awp_numpy.BN_EPS)[None]
    a = jnp.tanh(z * p["scale"][None] + p["shift"][None])
    logits = a @ p["w2"] + p["b2"][None]
    loss = optax.losses.softmax_cross_entropy_with_integer_labels(logits, y).mean()
    return loss, jax.tree.map(lambda s, new: 0.9 * s + 0.1 * new, stats, (mean, var))


STATS = (np.zeros(4), np.ones(4))


def tree(p, dtype=None):
    return jax.tree.map(lambda x: jnp.array(x, dtype), p)


def close(a, b, rtol=1e-10, atol=1e-12):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), a, b)


@pytest.mark.parametrize("gamma", [0.005, 0.5])
@pytest.mark.parametrize("proxy_rate", [0.01, 1.0])
def test_value_gradient_and_statistics_are_those_of_the_reference(x64, gamma, proxy_rate):
    (value, stats), grads = optim.awp_value_and_grad(loss_fn, gamma, has_aux=True)(
        tree(P), tree(STATS), X, Y
    )
    v = awp_numpy.perturbation(P, X, Y, gamma, proxy_rate)
    loss, expected, batch = awp_numpy.forward({k: P[k] + v[k] for k in P}, X, Y)
    assert float(value) == pytest.approx(loss, rel=1e-12)
    close(grads, expected)
    close(stats, tuple(0.9 * s + 0.1 * b for s, b in zip(STATS, batch, strict=True)))
    # The statistics of the first pass were thrown away: they are far from those.
    _, _, clean = awp_numpy.forward(P, X, Y)
    assert abs(clean[0] - batch[0]).max() > 1e-3


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_steps_of_sgd_are_those_of_the_reference(x64, decay):
    """Weights moved, stepped and moved back: momentum, and decay at the perturbed weights."""
    gamma, lr = 0.2, 0.1
    tx = training.sgd(lr, momentum=0.9, weight_decay=decay)
    grad_fn = optim.awp_value_and_grad(loss_fn, gamma, has_aux=True, weight_decay=decay)
    params, state = tree(P), tx.init(tree(P))
    expected, buffer = P, {k: 0.0 for k in P}
    for _ in range(4):
        (value, _), grads = grad_fn(params, tree(STATS), X, Y)
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        expected, buffer, loss, _ = awp_numpy.sgd_step(
            expected, buffer, X, Y, gamma=gamma, lr=lr, momentum=0.9, decay=decay
        )
        assert float(value) == pytest.approx(loss, rel=1e-10)
    close(params, expected, rtol=1e-9)


def test_decay_at_the_plain_weights_is_the_default(x64):
    plain, decayed = (
        optim.awp_value_and_grad(loss_fn, 0.2, has_aux=True, weight_decay=w)(
            tree(P), tree(STATS), X, Y
        )[1]
        for w in (0.0, 0.3)
    )
    v = awp_numpy.perturbation(P, X, Y, 0.2, 0.01)
    close(decayed, {k: plain[k] + 0.3 * v[k] for k in P})
    assert all((decayed[k] == plain[k]).all() for k in P if k not in awp_numpy.KERNELS)


def flat(p):
    return np.concatenate([np.ravel(p[k]) for k in SHAPES])


def unflat(w):
    ends = np.cumsum([np.prod(s) for s in SHAPES.values()])[:-1]
    parts = np.split(w, ends)
    return {k: part.reshape(s) for part, (k, s) in zip(parts, SHAPES.items(), strict=True)}


@pytest.mark.parametrize("second_order", [False, True])
def test_inside_the_loop_of_entropy_sgd(x64, second_order):
    """Gradient at theta' + v; pull, decay, momentum and averages at theta'."""
    gamma, n_in = 0.1, 3
    batches = [(RNG.normal(size=X.shape), RNG.integers(0, 3, 7)) for _ in range(n_in)]

    def grad(w, batch):
        p = unflat(w)
        v = awp_numpy.perturbation(p, *batch, gamma, 0.01)
        return flat(awp_numpy.forward({k: p[k] + v[k] for k in p}, *batch)[1])

    options = dict(lr=0.4, inner_lr=0.1, gamma=0.03, second_order=second_order)
    expected, _ = entropy_sgd_numpy.pytorch_step(
        flat(P),
        np.zeros(len(flat(P))),
        1,
        grad=grad,
        batches=batches,
        draws=[0.0] * n_in,
        first_gradient=None,
        **options,
    )
    value_and_grad = optim.awp_value_and_grad(loss_fn, gamma, has_aux=True)

    def grad_fn(p, batch, carry):
        (_, stats), grads = value_and_grad(p, carry, *batch)
        return grads, stats

    tx = optim.entropy_sgd(0.4, n_in=n_in, noise=0, second_order=second_order)
    stacked = tuple(jnp.array(np.stack(part)) for part in zip(*batches, strict=True))
    params = tree(P)
    updates, state = tx.update(
        None, tx.init(params), params, grad_fn=grad_fn, batches=stacked, carry=tree(STATS)
    )
    close(optax.apply_updates(params, updates), unflat(expected), rtol=1e-9)
    assert not np.allclose(state.carry[0], 0)


# --- degenerate cases ----------------------------------------------------------------------------


@pytest.mark.parametrize("gamma", [0, 0.0])
def test_gamma_0_is_value_and_grad(gamma):
    arguments = (tree(P, "float32"), tree(STATS, "float32"), jnp.array(X, "float32"), Y)
    found = optim.awp_value_and_grad(loss_fn, gamma, has_aux=True, weight_decay=0.1)(*arguments)
    jax.tree.map(
        np.testing.assert_array_equal, found, jax.value_and_grad(loss_fn, has_aux=True)(*arguments)
    )


def test_a_traced_gamma_that_warms_up():
    """One program: off at 0, and the perturbed gradient afterwards."""
    arguments = (tree(P, "float32"), tree(STATS, "float32"), jnp.array(X, "float32"), Y)

    @jax.jit
    def traced(gamma):
        return optim.awp_value_and_grad(loss_fn, gamma, has_aux=True, weight_decay=0.1)(*arguments)

    close(traced(0.0), jax.value_and_grad(loss_fn, has_aux=True)(*arguments), 1e-5, 1e-6)
    static = optim.awp_value_and_grad(loss_fn, 0.3, has_aux=True, weight_decay=0.1)(*arguments)
    close(traced(0.3), static, 1e-4, 1e-5)
    assert traced._cache_size() == 1


def test_every_kernel_moves_by_gamma_times_its_norm_and_nothing_else_moves():
    grads = {k: RNG.normal(size=s) for k, s in SHAPES.items()}
    v = awp_perturbation(tree(P, "float32"), tree(grads, "float32"), 0.07)
    for k in SHAPES:
        size = np.linalg.norm(v[k])
        if k in awp_numpy.KERNELS:
            assert size == pytest.approx(0.07 * np.linalg.norm(P[k]), rel=1e-5)
            cosine = np.sum(v[k] * grads[k]) / size / np.linalg.norm(grads[k])
            assert cosine == pytest.approx(1, abs=1e-6)
        else:
            assert not np.any(v[k])


def test_a_kernel_of_four_dimensions_is_one_layer():
    params, grads = RNG.normal(size=(2, 3, 3, 2, 4))
    params, grads = jnp.array(params, "float32"), jnp.array(grads, "float32")
    v = awp_perturbation(params, grads, 0.1)
    close(v, 0.1 * np.linalg.norm(params) * grads / np.linalg.norm(grads), 1e-5, 1e-7)


def test_a_layer_without_gradient_stays_where_it_is():
    params = tree(P, "float32")
    loss = lambda p: jnp.sum(p["w1"] ** 2) + 0 * jnp.sum(p["w2"])
    value, grads = optim.awp_value_and_grad(loss, 0.5)(params)
    assert float(value) == pytest.approx(2.25 * np.sum(P["w1"] ** 2), rel=1e-5)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
    assert not np.any(grads["w2"])
    zero = awp_perturbation(jnp.zeros((2, 2)), jnp.ones((2, 2)), 0.5)
    assert not np.any(zero)  # weights of norm 0 have no room to move


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_the_size_of_the_gradient_does_not_matter(scale):
    grads = {"w": scale * jnp.array([[3.0, 4.0]])}
    v = awp_perturbation({"w": jnp.array([[0.0, 2.0]])}, grads, 0.5)
    np.testing.assert_allclose(v["w"], [[0.6, 0.8]], rtol=1e-6)


def test_bfloat16_parameters_keep_their_dtype():
    params = {"w": jnp.ones((2, 2), jnp.bfloat16)}
    value_and_grad = optim.awp_value_and_grad(lambda p: jnp.sum(p["w"] ** 2), 0.5, weight_decay=0.1)
    _, grads = value_and_grad(params)
    assert grads["w"].dtype == jnp.bfloat16
    np.testing.assert_allclose(grads["w"].astype("float32"), 3.05, rtol=1e-2)


@pytest.mark.parametrize(
    "mask", [{"a": False, "b": True}, lambda p: {"a": False, "b": True}], ids=["tree", "function"]
)
def test_a_mask_chooses_the_leaves(mask):
    params = {"a": jnp.ones((2, 2)), "b": jnp.ones(2)}
    v = awp_perturbation(params, params, 1.0, mask=mask)
    assert not np.any(v["a"]) and np.linalg.norm(v["b"]) == pytest.approx(2**0.5)


def test_contract_of_value_and_grad():
    """Without auxiliary output, with keyword arguments, in jit and in vmap."""
    loss = lambda w, x, *, power: jnp.sum((w @ x) ** power)
    w, x = jnp.eye(2), jnp.array([1.0, 2.0])
    function = optim.awp_value_and_grad(loss, 0.1)
    value, grads = function(w, x, power=2)
    assert value.shape == () and grads.shape == (2, 2)
    close(jax.jit(function, static_argnames="power")(w, x, power=2), (value, grads), 1e-5, 1e-6)
    many = jax.vmap(lambda w: function(w, x, power=2))(jnp.stack([w, w]))
    close(many[1][1], grads, 1e-5, 1e-6)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(gamma=-0.1), "gamma=-0.1 must be a finite number >= 0; 0 disables the perturbation"),
        (dict(gamma=float("nan")), "gamma=nan must be"),
        (dict(gamma=0.1, weight_decay=-1.0), "weight_decay=-1.0 must be"),
    ],
    ids=["negative", "nan", "decay"],
)
def test_what_makes_no_sense_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        optim.awp_value_and_grad(loss_fn, **options)


LAYERS = {"body": {"kernel": jnp.full((3, 2), 0.5), "bias": jnp.ones(2)}, "head": [jnp.eye(2)]}


def layers_loss(params):
    x = jnp.ones((4, 3)) @ params["body"]["kernel"] + params["body"]["bias"][None]
    return jnp.sum((x @ params["head"][0] - 1) ** 2)


@pytest.mark.parametrize(
    ("mask", "moves"),
    [
        (True, [True, True, True]),
        (False, [False, False, False]),
        ({"body": False, "head": True}, [False, False, True]),
        ({"body": True, "head": [False]}, [True, True, False]),
        ({"body": {"kernel": True, "bias": np.False_}, "head": True}, [False, True, True]),
        (lambda params: {"body": jnp.array(True), "head": False}, [True, True, False]),
    ],
)
def test_a_mask_may_name_whole_layers(mask, moves):
    whole = jax.tree.unflatten(jax.tree.structure(LAYERS), moves)
    results = [optim.awp_value_and_grad(layers_loss, 0.3, mask=m)(LAYERS) for m in (mask, whole)]
    jax.tree.map(np.testing.assert_array_equal, *results)
    grads = jax.grad(layers_loss)(LAYERS)
    v = optim.awp_perturbation(LAYERS, grads, 0.3, mask=mask)
    assert [bool(leaf.any()) for leaf in jax.tree.leaves(v)] == moves


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ({"body": True}, r"^mask has no entry for params\['head'\]\[0\]; pass True or False"),
        ({"bdy": True, "head": True}, r"^mask has no entry for params\['body'\]\['bias'\]"),
        ({"body": True, "head": True, "tail": True}, r"^mask\['tail'\] matches nothing in params"),
        ({"body": 1, "head": True}, r"^mask\['body'\]=1 is not True or False"),
        ({"body": None, "head": True}, r"^mask\['body'\]=None is not True or False"),
        ("head", r"^mask='head' is not True or False"),
    ],
)
def test_a_mask_that_does_not_fit_is_refused(mask, message):
    with pytest.raises(ValueError, match=message):
        optim.awp_value_and_grad(layers_loss, 0.3, mask=mask)(LAYERS)


def test_gaps_in_parameters_need_no_entry():
    params = LAYERS | {"none": None, "empty": {}}
    for mask in (None, {"body": True, "head": False, "none": None, "empty": False}):
        options = {} if mask is None else {"mask": mask}
        v = optim.awp_perturbation(params, params, 0.1, **options)
        assert jax.tree.structure(v) == jax.tree.structure(params)


def test_parameters_that_are_no_floats_are_refused():
    with pytest.raises(ValueError, match=r"^params\['step'\] has dtype int32.*close over it"):
        optim.awp_value_and_grad(layers_loss, 0.1)(LAYERS | {"step": jnp.int32(0)})
