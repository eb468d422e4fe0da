"""A model is its program and its arrays: what is traced, shared, hoisted and told apart."""

import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from jaxadv import _program
from jaxadv._program import digest, give_meaning, trace
from jaxadv._program_key import Stable

POINTS = jnp.linspace(0, 1, 32).reshape(2, 16)


def weights(seed, shape=(16, 5)):
    return jax.random.normal(jax.random.key(seed), shape)


def plain(seed):
    w = weights(seed)
    return lambda x: x @ w


def jitted(seed):
    w, b = weights(seed), weights(seed + 50, (5,))
    inner = jax.jit(lambda x: x @ w)
    return jax.jit(lambda x: inner(x) + b[None])


def relu(seed):
    w = weights(seed)
    return lambda x: jax.nn.relu(x @ w)


def activations(seed):
    w = weights(seed)
    return lambda x: jax.nn.log_softmax(jax.nn.gelu(x @ w)) + jax.nn.silu(x @ w)


def numpy_arrays(seed):
    w = np.asarray(weights(seed))
    return lambda x: x @ w


def checkpointed(seed):
    w = weights(seed)
    return jax.checkpoint(lambda x: jax.nn.relu(x @ w))


def scanned(seed):
    w = weights(seed, (16, 16))
    return lambda x: jax.lax.scan(lambda c, _: (jnp.tanh(c @ w), None), x, None, length=3)[0]


def branching(seed):
    w = weights(seed)
    return lambda x: jax.lax.cond(x.sum() > 0, lambda x: x @ w, lambda x: -(x @ w), x)


def keyed(seed):
    key = jax.random.key(seed)
    return lambda x: x[:, :5] + jax.random.normal(key, (2, 5))


def nnx_module(seed):
    rngs = nnx.Rngs(seed)
    layers = (nnx.Linear(16, 8, rngs=rngs), nnx.BatchNorm(8, rngs=rngs), nnx.relu)
    model = nnx.Sequential(*layers, nnx.Dropout(0.5, rngs=rngs), nnx.Linear(8, 5, rngs=rngs))
    model.eval()
    return model


def linen_bound(seed):
    module = linen.Dense(5)
    return module.bind(module.init(jax.random.key(seed), POINTS))


def custom_rule(seed):
    w = weights(seed)

    @jax.custom_vjp
    def scaled(x):
        return 2 * x

    scaled.defvjp(lambda x: (2 * x, None), lambda _, g: (3 * g,))
    return lambda x: scaled(x @ w)


FORMS = [
    plain, jitted, relu, activations, numpy_arrays, checkpointed, scanned, branching, keyed,
    nnx_module, linen_bound, custom_rule,
]  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_two_sets_of_weights_share_a_program_and_differ_in_their_digest(form):
    first, second = trace(form(1), POINTS), trace(form(2), POINTS)
    assert first.func is second.func
    assert digest(first) == digest(trace(form(1), POINTS)) != digest(second)


@pytest.mark.parametrize("form", FORMS)
def test_values_and_gradients_are_those_of_the_function(form):
    function = form(1)
    traced = trace(function, POINTS)
    value_and_grad = lambda f, x: jax.value_and_grad(lambda x: (f(x) ** 2).sum())(x)
    with jax.debug_key_reuse(False):  # a model's own key is used at every call
        found = jax.jit(value_and_grad)(traced, POINTS)
        wanted = jax.jit(lambda x: value_and_grad(function, x))(POINTS)
    np.testing.assert_allclose(found[0], wanted[0], rtol=1e-6)
    np.testing.assert_allclose(found[1], wanted[1], rtol=1e-5, atol=1e-6)


def jvp_model(rule):
    act = jax.custom_jvp(lambda x: x)
    act.defjvp(rule)
    return lambda x: act(x)


def vjp_model(backward):
    act = jax.custom_vjp(lambda x: x)
    act.defvjp(lambda x: (x, None), backward)
    return lambda x: act(x)


def scaled_rule(scale):
    def rule(primals, tangents):
        return primals[0], scale * tangents[0]

    return rule


FACTOR = 1.0


def rule_of_a_global(primals, tangents):
    return primals[0], FACTOR * tangents[0]


def test_a_custom_jvp_rule_redefined_under_the_same_name_is_another_program():
    one, same, other = (trace(jvp_model(scaled_rule(s)), POINTS) for s in (1.0, 1.0, 2.0))
    assert one.func == same.func != other.func
    assert digest(one) == digest(same) != digest(other)
    slope = jax.jit(lambda model, x: jax.grad(lambda x: model(x).sum())(x))
    assert float(slope(one, POINTS).max()) == 1.0
    assert float(slope(other, POINTS).max()) == 2.0


def test_a_custom_vjp_rule_redefined_under_the_same_name_is_another_program():
    one, other = (trace(vjp_model(lambda _, g, s=s: (s * g,)), POINTS) for s in (1.0, 2.0))
    assert one.func != other.func
    assert digest(one) != digest(other)
    slope = jax.jit(lambda model, x: jax.grad(lambda x: model(x).sum())(x))
    assert [float(slope(model, POINTS).max()) for model in (one, other)] == [1.0, 2.0]


def test_a_rule_that_reads_a_reassigned_name_is_another_program(monkeypatch):
    before = trace(jvp_model(rule_of_a_global), POINTS)
    monkeypatch.setitem(globals(), "FACTOR", 2.0)
    assert trace(jvp_model(rule_of_a_global), POINTS).func != before.func


def test_a_rule_over_an_object_that_may_change_is_never_shared():
    class Scale:
        value = 1.0

    scale = Scale()

    def rule(primals, tangents):
        return primals[0], scale.value * tangents[0]

    model = jvp_model(rule)
    assert trace(model, POINTS).func != trace(model, POINTS).func


def test_numbers_written_into_the_operations_tell_programs_apart():
    programs = [trace(lambda x, c=c: x * c, POINTS).func for c in (2.0, 3.0, 0.0, -0.0)]
    assert len(set(programs)) == 4


def test_arrays_inside_jitted_functions_are_arguments():
    traced = trace(jitted(1), POINTS)
    shapes = sorted(leaf.shape for leaf in jax.tree.leaves(traced))
    assert shapes == [(5,), (16, 5)]


def test_a_program_keeps_no_weights_alive():
    w = weights(1)
    held = weakref.ref(w)
    model = lambda w: lambda x: jax.nn.relu(x @ w)
    program = trace(model(w), POINTS).func
    del w
    gc.collect()
    assert program.out.shape == (2, 5)
    assert held() is None


def test_numpy_weights_are_copied():
    w = np.ones((16, 5), np.float32)
    traced = trace(lambda x: x @ w, POINTS)
    before = traced(POINTS)
    w[:] = 0
    np.testing.assert_array_equal(traced(POINTS), before)


def test_a_model_over_tracers_is_traced_inside_jit():
    inner = lambda w: trace(lambda x: x @ w, POINTS)(POINTS).sum()
    w = weights(1)
    np.testing.assert_allclose(jax.jit(inner)(w), (POINTS @ w).sum(), rtol=1e-6)
    np.testing.assert_allclose(
        jax.grad(inner)(w), jnp.broadcast_to(POINTS.sum(0)[:, None], w.shape), rtol=1e-6
    )


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match="traced for"):
        trace(plain(1), POINTS)(POINTS[:1])


def test_what_a_function_raises_is_one_line_with_its_name():
    def broken(x):
        raise KeyError("layer3\nand more")

    with pytest.raises(ValueError, match=r"^logits_fn failed: KeyError: 'layer3.*$") as caught:
        trace(broken, POINTS)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"jax\.numpy.*pure_callback"):
        trace(lambda x: np.asarray(x) @ np.ones((16, 5)), POINTS)
    with pytest.raises(ValueError, match=r"logits_fn is a list; pass a function"):
        trace([], POINTS)


def test_an_array_over_a_mesh_with_explicit_axes_becomes_automatic():
    mesh = jax.make_mesh((2,), ("batch",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    w = jax.device_put(weights(1), sharding)
    traced = trace(lambda x: x @ w, POINTS)
    np.testing.assert_array_equal(jax.jit(lambda m, x: m(x))(traced, POINTS), POINTS @ weights(1))


def test_an_array_that_stands_for_something_is_digested_by_its_meaning():
    number = jnp.uint32(7)
    model = lambda number: lambda x: x * number.astype("float32")
    traced = trace(model(number), POINTS)
    plainly = digest(traced)
    give_meaning(number, lambda: "weights A")
    first = digest(traced)
    give_meaning(number, lambda: "weights B")
    assert len({plainly, first, digest(traced)}) == 3
    known = len(_program._meanings)
    del number, traced
    gc.collect()
    assert len(_program._meanings) == known - 1


def test_a_rule_that_uses_a_stable_object_keeps_its_key():
    class Scale(Stable):
        def __call__(self, g):
            return 2 * g

    class Other:
        __call__ = Scale.__call__

    def model(scale):
        @jax.custom_vjp
        def call(x):
            return x

        call.defvjp(lambda x: (x, None), lambda _, g: (scale(g),))
        return call

    scale, other = Scale(), Other()
    program = lambda function: trace(function, POINTS).func
    assert program(model(scale)) == program(model(scale))
    assert program(model(other)) != program(model(other))
    assert program(model(scale)) != program(model(Scale()))
