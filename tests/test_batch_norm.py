"""BatchNorm that exchanges its statistics once: what it computes, and where it is used."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxadv import _batch_norm, _spread, models, objectives, training
from jaxadv._rewrite import fast_convolutions
from jaxadv._spread import spread_over
from tests.helpers import collectives

MESH = jax.make_mesh((2,), ("batch",), (AxisType.Auto,))
ROWS = NamedSharding(MESH, PartitionSpec("batch"))
EPSILON = 1e-5
NAMES = ("x", "scale", "bias")


def operands(mean=0.0, dtype=np.float64, batch=8, apart=0.0):
    """Inputs of standard deviation 1; the two devices' means are ``apart``."""
    rng = np.random.default_rng(0)
    x = mean + rng.normal(size=(batch, 5, 5, 3))
    x[batch // 2 :] += apart
    return tuple(np.asarray(a, dtype) for a in (x, rng.normal(size=3) + 2, rng.normal(size=3)))


def plain(x, scale, bias):
    """The definition."""
    mean = x.mean((0, 1, 2))
    var = ((x - mean[None, None, None]) ** 2).mean((0, 1, 2))
    normal = (x - mean[None, None, None]) / (var + EPSILON)[None, None, None] ** 0.5
    return normal * scale[None, None, None] + bias[None, None, None], mean, var


def traced(x, scale, bias):
    return _batch_norm.batch_norm(x, scale, bias, epsilon=EPSILON)


def on_two_devices(function):
    """Compiled for images split over two devices, as in a training program."""

    @spread_over(ROWS)
    def run(*args):
        x = jax.lax.with_sharding_constraint(args[0], ROWS)
        return function(fast_convolutions(traced))(x, *args[1:])

    return jax.jit(run)


@pytest.mark.parametrize("mean", [0.0, 1.0, 10.0, 100.0, 1000.0])
@pytest.mark.parametrize("apart", [0.0, 3.0])
def test_float32_is_as_accurate_as_two_passes(mean, apart):
    given = operands(mean, np.float32, batch=64, apart=apart)
    with jax.enable_x64(True):
        exact = plain(*(a.astype(np.float64) for a in given))
    found = on_two_devices(lambda f: f)(*given)
    two = jax.jit(traced)(*given)
    for ours, theirs, true in zip(found, two, exact, strict=True):
        allowed = 3 * np.abs(theirs - true).max() + 3e-6 * np.abs(true).max()
        assert np.abs(ours - true).max() <= allowed


def test_derivatives_of_both_forms_are_those_of_the_definition(x64):
    given = operands(1.0, apart=0.5)
    rng = np.random.default_rng(1)
    g = [jnp.asarray(rng.normal(size=a.shape)) for a in plain(*given)]
    t = [jnp.asarray(rng.normal(size=a.shape)) for a in given]

    def all_of(f):
        """Values, both modes, and a derivative of the gradient along t in both orders."""

        def every(*args):
            value, tangent = jax.jvp(f, args, tuple(t))
            pulled = lambda *args: jax.vjp(lambda *a: tuple(f(*a)), *args)[1](tuple(g))
            second = jax.jvp(pulled, args, tuple(t))[1]
            scalar = lambda *args: sum((a * b).sum() for a, b in zip(pulled(*args), t, strict=True))
            return value, tangent, pulled(*args), second, jax.grad(scalar, (0, 1, 2))(*args)

        return every

    expected = jax.tree.leaves(jax.jit(all_of(plain))(*given))
    for compiled in (jax.jit(all_of(traced)), on_two_devices(all_of)):
        for found, true in zip(jax.tree.leaves(compiled(*given)), expected, strict=True):
            np.testing.assert_allclose(found, true, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("argument", range(3), ids=NAMES)
def test_a_single_argument_moves(argument, x64):
    given = operands()
    gradient = lambda f: jax.grad(lambda *args: jnp.sin(f(*args)[0]).sum(), argument)
    found = on_two_devices(gradient)(*given)
    np.testing.assert_allclose(found, gradient(plain)(*given), rtol=1e-10, atol=1e-10)


def test_one_exchange_forward_and_one_backward():
    given = operands(dtype=np.float32)
    forward = lambda f: lambda *args: f(*args)[0]
    backward = lambda f: jax.grad(lambda *args: jnp.sin(f(*args)[0]).sum())
    text = lambda form: on_two_devices(form).lower(*given).compile().as_text()
    assert collectives.counts(text(forward)) == {"all-gather": 1}
    assert collectives.counts(text(backward)) == {"all-gather": 1, "all-reduce": 1}
    split = [jax.device_put(given[0], ROWS), *given[1:]]
    two = jax.jit(backward(traced)).lower(*split).compile().as_text()
    assert collectives.counts(two)["all-reduce"] > 2


@pytest.mark.parametrize("wrap", ["jit", "checkpoint", "vmap", "scan", "remat of jit"])
def test_inside_other_transformations(wrap, x64):
    x, scale, bias = operands()
    stacked = jnp.stack([x, 2 * x])

    def layer(x):
        f = lambda x: fast_convolutions(inner)(x)
        return jnp.sin(f(x)).sum()

    first = lambda x: traced(x, scale, bias)[0]
    inner = {
        "jit": lambda x: jax.jit(first)(x[0]),
        "checkpoint": lambda x: jax.checkpoint(first)(x[0]),
        "vmap": lambda x: jax.vmap(first)(x),
        "scan": lambda x: jax.lax.scan(lambda c, x: (c, first(x)), 0, x)[1],
        "remat of jit": lambda x: jax.checkpoint(jax.jit(first))(x[1]),
    }[wrap]
    expected = jax.jit(jax.grad(layer))(stacked)
    run = spread_over(ROWS)(lambda x: jax.grad(layer)(x))
    np.testing.assert_allclose(jax.jit(run)(stacked), expected, rtol=1e-10, atol=1e-10)


def forms(sharding, batch=8):
    """Whether a layer traced for a sharding exchanges once."""
    given = operands(dtype=np.float32, batch=batch)
    run = spread_over(sharding)(fast_convolutions(traced))
    [equation] = jax.make_jaxpr(run)(*given).eqns
    return equation.primitive.name == "shard_map" or equation.params["spread"] is not None


def test_only_where_every_device_has_its_share_of_the_images():
    assert forms(ROWS)
    assert not forms(None)
    assert not forms(ROWS, batch=7)
    two = jax.make_mesh((2, 1), ("a", "b"), (AxisType.Auto,) * 2)
    assert forms(NamedSharding(two, PartitionSpec("a")))
    assert not forms(NamedSharding(two, PartitionSpec("b")))
    assert not forms(NamedSharding(two, PartitionSpec(None, "a")))
    assert not forms(NamedSharding(two, PartitionSpec()))
    explicit = jax.make_mesh((2,), ("batch",), (AxisType.Explicit,))
    assert not forms(NamedSharding(explicit, PartitionSpec("batch")))


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_not_on_accelerators(platform):
    fields = ("id", "platform", "process_index", "device_kind")
    fake = dataclasses.make_dataclass("Fake", fields, frozen=True)
    devices = np.empty(2, object)
    devices[:] = [fake(i, platform, 0, "fake") for i in range(2)]
    mesh = Mesh(devices, ("batch",), axis_types=(AxisType.Auto,))
    found = _spread._spread_of(NamedSharding(mesh, PartitionSpec("batch")))
    assert (found is not None) == (platform == "cpu")


def test_not_without_devices():
    mesh = jax.sharding.AbstractMesh((2,), ("batch",), (AxisType.Auto,))
    assert not forms(NamedSharding(mesh, PartitionSpec("batch")))


class Network(nn.Module):
    """A convolution and BatchNorm."""

    @nn.compact
    def __call__(self, x, *, train):
        x = models.BatchNorm()(models.Conv(4, (3, 3))(x), train=train)
        return nn.relu(x).mean((1, 2))


@pytest.fixture(scope="module")
def trained():
    """A user's jitted model, a training program on two devices, and its result on one."""
    module = Network()
    variables = module.init(jax.random.key(0), jnp.zeros((2, 6, 6, 3)), train=False)

    @functools.partial(jax.jit, static_argnums=3)
    def apply_fn(params, stats, x, train):
        both = {"params": params, "batch_stats": stats}
        if not train:
            return module.apply(both, x, train=False), stats
        logits, moved = module.apply(both, x, train=True, mutable=["batch_stats"])
        return logits, moved["batch_stats"]

    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.integers(0, 256, (16, 6, 6, 3), np.uint8))
    data = training.DeviceData(images, jnp.arange(16) % 4)
    tx = training.sgd(0.1)
    objective = objectives.adversarial_cross_entropy(apply_fn, num_steps=2, eps=0.1, step_size=0.05)

    def run(sharding):
        program = training.Program(apply_fn, objective, batch_size=8, sharding=sharding)
        place = sharding and NamedSharding(MESH, PartitionSpec())
        state = training.TrainState.create(variables["params"], variables["batch_stats"], tx)
        state, at = jax.device_put((jax.tree.map(jnp.array, state), data), place)
        step = program.sgd_steps(tx)
        text = step.lower(state, at, jax.random.key(0), 1).compile().as_text()
        return step(state, at, jax.random.key(0), 1), text

    return apply_fn, variables, run


def test_a_training_program_on_two_devices(trained):
    _, _, run = trained
    (state, metrics), text = run(ROWS)
    (one, measured), alone = run(None)
    for ours, theirs in zip(*map(jax.tree.leaves, (state, one)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-6)
    np.testing.assert_allclose(metrics["loss"], measured["loss"], rtol=1e-5)
    assert collectives.counts(text)["all-gather"] == 2  # in the attack's loop and in the loss
    assert not collectives.counts(alone)


def test_a_jitted_model_serves_other_programs_afterwards(trained):
    apply_fn, variables, run = trained
    run(ROWS)
    x = jax.device_put(jnp.ones((8, 6, 6, 3)), jax.devices()[1])
    params, stats = jax.device_put(
        (variables["params"], variables["batch_stats"]), jax.devices()[1]
    )
    logits, _ = apply_fn(params, stats, x, True)
    assert logits.devices() == {jax.devices()[1]}
