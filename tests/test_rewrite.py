"""Convolutions of users' networks are replaced, and values and derivatives stay what they were."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from jax import lax

from jaxadv import attacks, losses, objectives, theory
from jaxadv._program import digest, trace
from jaxadv.models import fast_convolutions, native_convolutions

FAST = "[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]"
IMAGES = np.random.default_rng(0).uniform(size=(2, 8, 8, 3))


def kernel(*shape):
    return np.random.default_rng(1).normal(size=shape) / np.sqrt(np.prod(shape[1:]))


def conv(x, k, strides=(1, 1), padding="SAME", layout=("NHWC", "OIHW", "NHWC"), **options):
    return lax.conv_general_dilated(x, k, strides, padding, dimension_numbers=layout, **options)


def head(y):
    return y.reshape(len(y), -1)[:, :45].reshape(len(y), 5, -1).sum(2)


# Each is a function of images (B, H, W, C) and of one kernel.
def plain(x, k):
    return conv(x, k)


def strided(x, k):
    return conv(x, k, (2, 1), ((1, 0), (-1, 2)))


def dilated(x, k):
    return conv(x, k, (1, 2), ((2, 1), (0, 3)), rhs_dilation=(2, 3))


def layouts(x, k):
    y = conv(x.transpose(0, 3, 1, 2), k, layout=("NCHW", "OIHW", "NCHW"))
    y = conv(y.transpose(2, 1, 3, 0), k, layout=("HCWN", "IWOH", "WNHC"), padding="VALID")
    return y.transpose(1, 2, 0, 3)


def one_by_one(x, k):
    return conv(x, k[:, :, :1, :1], (2, 2), "VALID")


def in_jit(x, k):
    inner = jax.jit(jnp.vectorize(jnp.sin))
    return jax.jit(lambda x: inner(conv(x, k)))(x)


def in_remat(x, k):
    return jax.checkpoint(lambda x: jnp.sin(conv(x, k)))(x)


def in_cond(x, k):
    return lax.cond(x.sum() > 0, lambda x: conv(x, k), lambda x: conv(x, 2 * k), x)


def in_switch_under_scan(x, k):
    branches = [lambda x: conv(x, k), jnp.cos, lambda x: conv(x, -k)]
    step = lambda x, i: (lax.switch(i, branches, x), None)
    return lax.scan(step, x, jnp.arange(3))[0]


def in_scan(x, k):
    return lax.scan(lambda x, k: (conv(jnp.tanh(x), k), None), x, jnp.stack([k, -k]))[0]


def in_while(x, k):
    value = lambda x: conv(x, k)
    step = lambda carry: (carry[0] + 1, value(carry[1]))
    return lax.while_loop(lambda carry: carry[0] < 2, step, (0, x))[1]


def in_custom_jvp(x, k):
    @jax.custom_jvp
    def scaled(x, k, number):
        return conv(x, k)

    @scaled.defjvp
    def rule(primals, tangents):
        (x, k, number), (dx, dk, _) = primals, tangents
        return scaled(x, k, number), 3 * conv(dx, k * x.sum()) + conv(x, dk)

    return scaled(x, k, 3)


def in_custom_vjp(x, k):
    @functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
    def smoothed(x, number, power):
        return conv(x, k) ** power

    def forward(x, number, power):
        return conv(x, k) ** power, (x, number)

    def backward(power, saved, g):
        x, number = saved
        return conv(g * jnp.sin(x), k) * number, None

    smoothed.defvjp(forward, backward)
    return smoothed(x, jnp.arange(2)[1], 2)


def only_in_the_rule(x, k):
    passed = jax.custom_vjp(lambda x: jnp.round(x))
    passed.defvjp(lambda x: (jnp.round(x), x), lambda x, g: (conv(g * jnp.cos(x), k),))
    return passed(3 * x)


STRUCTURES = [
    plain, strided, dilated, layouts, one_by_one, in_jit, in_remat, in_cond, in_switch_under_scan,
    in_scan, in_while, in_custom_jvp, in_custom_vjp, only_in_the_rule,
]  # fmt: skip
KINDS = {in_while: "forward", in_custom_vjp: "images", only_in_the_rule: "images"}


def assert_close(got, wanted, rtol=1e-12):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        scale = 1 + np.abs(np.asarray(b, np.float64)).max()
        np.testing.assert_allclose(a, b, atol=rtol * scale, rtol=0)


def products(function, kind, x, k):
    """Value, gradients and a Hessian-vector product, in both arguments or in the images alone."""
    loss = lambda x, k: jnp.sin(head(function(x, k))).sum()
    if kind == "forward":
        along = lambda x: jax.jvp(loss, (x, k), (x[::-1], k[::-1]))[1]
        return loss(x, k), along(x), jax.jvp(along, (x,), (x[::-1],))
    gradient = lambda x: jax.grad(loss, 0 if kind == "images" else (0, 1))(x, k)
    return loss(x, k), gradient(x), jax.jvp(gradient, (x,), (x[::-1],))[1]


def convolutions(function, *args, platform="cpu"):
    """How often each layout of a convolution is in a program lowered for a platform."""
    text = jax.jit(function).trace(*args).lower(lowering_platforms=(platform,)).as_text()
    found = re.findall(r"dim_numbers = (\S.*?), window", text)
    return {layout: found.count(layout) for layout in found}


IN_DEFAULT_TESTS = (in_custom_vjp,)


def some_slow(functions):
    mark = lambda f: f if f in IN_DEFAULT_TESTS else pytest.param(f, marks=pytest.mark.slow)
    return [*map(mark, functions)]


@pytest.mark.parametrize("function", some_slow(STRUCTURES))
def test_values_and_derivatives_are_those_of_the_original(x64, function):
    x, k, kind = jnp.asarray(IMAGES), jnp.asarray(kernel(3, 3, 3, 3)), KINDS.get(function, "both")
    of = lambda function: jax.jit(functools.partial(products, function, kind))(x, k)
    assert_close(of(fast_convolutions(function)), of(function))


def climb(function, k):
    """Two gradient steps in a loop."""
    slope = jax.grad(lambda x: jnp.sin(head(function(x, k))).sum())
    return lambda x: lax.fori_loop(0, 2, lambda _, x: x + jnp.sign(slope(x)), x)


@pytest.mark.parametrize("function", sorted(set(STRUCTURES) - {in_while}, key=str))
def test_no_slow_layout_is_left_on_cpu_and_nothing_changes_elsewhere(function):
    x, k = jnp.asarray(IMAGES, jnp.float32), jnp.asarray(kernel(3, 3, 3, 3), jnp.float32)
    given, fast = climb(function, k), climb(fast_convolutions(function), k)
    assert set(convolutions(fast, x)) <= {FAST}
    assert not set(convolutions(given, x)) <= {FAST}
    for platform in ("cuda", "tpu"):
        found = convolutions(fast, x, platform=platform)
        assert found and found == convolutions(given, x, platform=platform)


def test_derivatives_in_the_kernel_are_in_the_fast_layout_too():
    x, k = jnp.asarray(IMAGES, jnp.float32), jnp.asarray(kernel(3, 3, 3, 3), jnp.float32)

    def descend(function):
        slope = jax.grad(lambda k: jnp.sin(head(function(x, k))).sum())
        return lambda k: lax.fori_loop(0, 2, lambda _, k: k - slope(k), k)

    assert set(convolutions(descend(fast_convolutions(dilated)), k)) == {FAST}
    assert set(convolutions(descend(dilated), k)) != {FAST}


def of_3d(x, k):
    volume = lambda a: jnp.broadcast_to(a, (2, *a.shape)).swapaxes(0, 1)
    numbers = ("NDHWC", "DHWIO", "NDHWC")
    k = jnp.broadcast_to(k, (2, *k.shape))
    return lax.conv_general_dilated(volume(x), k, (1, 1, 1), "SAME", dimension_numbers=numbers)


LEFT = {
    "transposed": lambda x, k: conv(x, k, lhs_dilation=(2, 2), padding=((1, 1), (1, 1))),
    "batch groups": lambda x, k: conv(x, k[:2], batch_group_count=2),
    "1-D": lambda x, k: conv(x[0], k[0], (1,), layout=("NWC", "WIO", "NWC")),
    "3-D": of_3d,
    "wider result": lambda x, k: conv(x, k, preferred_element_type=jnp.float64),
    "integers": lambda x, k: conv(x.astype(int), k.astype(int)),
}


@pytest.mark.parametrize("name", LEFT)
def test_other_convolutions_stay_as_they_are(x64, name):
    x, k = jnp.asarray(IMAGES, jnp.float32), jnp.asarray(kernel(3, 3, 3, 3), jnp.float32)
    programs = [str(jax.make_jaxpr(f)(x, k)) for f in (LEFT[name], fast_convolutions(LEFT[name]))]
    assert "conv_general_dilated" in programs[0]
    assert programs[0] == programs[1]


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("precision", [None, "highest"])
@pytest.mark.slow
def test_dtype_and_precision_are_those_of_the_convolution(dtype, precision):
    x, k = jnp.asarray(IMAGES, dtype), jnp.asarray(kernel(3, 3, 3, 3), dtype)
    function = lambda x: conv(x, k, precision=precision)
    fast = fast_convolutions(function)
    assert fast(x).dtype == jax.grad(lambda x: fast(x).sum())(x).dtype == dtype
    tell = lambda f: jax.jit(f).trace(x).lower(lowering_platforms=("cuda",)).as_text()
    found = [re.findall(r"stablehlo.precision (\w+)", tell(f)) for f in (function, fast)]
    assert found[0] == found[1] == ["HIGHEST" if precision else "DEFAULT"] * 2
    np.testing.assert_allclose(
        *(np.asarray(f(x), np.float32) for f in (function, fast)),
        atol=2e-2 if dtype == "bfloat16" else 1e-6,
    )


@pytest.mark.parametrize("axes", [(0, None), (None, 1), (1, 0)])
@pytest.mark.slow
def test_vmap_is_that_of_the_original(axes):
    x, k = jnp.asarray(IMAGES, jnp.float32), jnp.asarray(kernel(3, 3, 3, 3), jnp.float32)
    given = [
        a if axis is None else jnp.stack([a, 2 * a], axis)
        for a, axis in zip((x, k), axes, strict=True)
    ]
    found = [jax.jit(jax.vmap(f, axes))(*given) for f in (layouts, fast_convolutions(layouts))]
    assert_close(found[1], found[0], 1e-5)


@pytest.mark.slow
def test_sharding_is_that_of_the_original():
    mesh = jax.make_mesh((2,), ("batch",), (jax.sharding.AxisType.Auto,))
    split = jax.sharding.PartitionSpec("batch")
    x, k = jnp.asarray(IMAGES, jnp.float32), jnp.asarray(kernel(3, 3, 3, 3), jnp.float32)
    placed = jax.device_put(x, jax.sharding.NamedSharding(mesh, split))
    found = jax.jit(climb(fast_convolutions(plain), k))(placed)
    assert found.sharding.spec == split
    np.testing.assert_array_equal(found, jax.jit(climb(plain, k))(x))
    inside = jax.shard_map(lambda x: plain(x, k), mesh=mesh, in_specs=split, out_specs=split)
    fast = jax.jit(jax.grad(lambda x: fast_convolutions(inside)(x).sum()))
    np.testing.assert_allclose(fast(x), jax.grad(lambda x: plain(x, k).sum())(x), rtol=1e-5)
    assert set(convolutions(climb(fast_convolutions(lambda x, _: inside(x)), k), x)) == {FAST}


def test_the_option_changes_the_program_and_not_the_digest():
    k = jnp.asarray(kernel(3, 3, 3, 3), jnp.float32)
    model = lambda x: head(layouts(x, k))
    fast, again = (trace(model, IMAGES.astype("float32")) for _ in range(2))
    with native_convolutions():
        native = trace(model, IMAGES.astype("float32"))
        assert fast_convolutions(model) is model
    assert fast.func is again.func and fast.func != native.func
    assert digest(fast) == digest(native)
    assert digest(fast) != digest(trace(lambda x: model(x) + 1, IMAGES.astype("float32")))


def flax_network():
    module = linen.Sequential([
        linen.Conv(4, (3, 3)), linen.relu, linen.Conv(4, (3, 3), strides=2), linen.GroupNorm(2),
        lambda x: x.mean((1, 2)), linen.Dense(3),
    ])  # fmt: skip
    variables = module.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    return lambda x: module.apply(variables, x)


def nnx_network():
    rngs = nnx.Rngs(0)
    first, second = nnx.Conv(3, 4, (3, 3), rngs=rngs), nnx.Conv(4, 3, (3, 3), 2, rngs=rngs)
    return nnx.Sequential(first, nnx.relu, second, lambda x: x.mean((1, 2)))


def haiku_network():
    haiku = pytest.importorskip("haiku")

    def network(x):
        x = jax.nn.relu(haiku.Conv2D(4, 3)(x))
        return haiku.Conv2D(3, 3, stride=2)(x).mean((1, 2))

    network = haiku.without_apply_rng(haiku.transform(network))
    params = network.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    return functools.partial(network.apply, params)


def equinox_network():
    nn = pytest.importorskip("equinox").nn
    first = nn.Conv2d(3, 4, 3, key=jax.random.key(0))
    second = nn.Conv2d(4, 3, 3, 2, key=jax.random.key(1))
    one = lambda x: second(jax.nn.relu(first(x.transpose(2, 0, 1)))).mean((1, 2))
    return jax.vmap(one)


def lax_network():
    first, second = (jnp.asarray(kernel(n, m, 3, 3), jnp.float32) for n, m in ((4, 3), (3, 4)))
    layer = functools.partial(conv, layout=("NCHW", "OIHW", "NCHW"))
    return lambda x: layer(jax.nn.relu(layer(x.transpose(0, 3, 1, 2), first)), second).mean((2, 3))


NETWORKS = [flax_network, nnx_network, haiku_network, equinox_network, lax_network]
BALL = dict(norm="linf", eps=0.1, step_size=0.05, num_steps=3)


@pytest.mark.parametrize(
    "make", [lax_network, *(pytest.param(make, marks=pytest.mark.slow) for make in NETWORKS[:-1])]
)
def test_an_attack_has_only_fast_convolutions(make):
    images, labels, network = jnp.asarray(IMAGES, jnp.float32), jnp.arange(2), make()
    attack = lambda x: attacks.pgd(0, network, x, labels, **BALL)
    assert set(convolutions(attack, images)) == {FAST}
    with native_convolutions():
        assert set(convolutions(lambda x: attack(x), images)) != {FAST}


@pytest.mark.slow
@pytest.mark.parametrize("make", NETWORKS)
def test_an_attack_gives_the_same_images(make):
    images, labels, network = jnp.asarray(IMAGES, jnp.float32), jnp.arange(2), make()
    moved = attacks.pgd(0, network, images, labels, **BALL)
    with native_convolutions():
        np.testing.assert_allclose(
            moved, attacks.pgd(0, network, images, labels, **BALL), atol=1e-6
        )


@pytest.mark.slow
def test_training_and_the_theory_replace_convolutions_of_the_model():
    k = jnp.asarray(kernel(4, 3, 3, 3), jnp.float32)
    x, labels = jnp.asarray(IMAGES, jnp.float32), jnp.arange(2)

    def apply_fn(params, batch_stats, images, train):
        assert isinstance(train, bool)
        return head(conv(images, params))[:, :4], batch_stats

    def step(objective):
        def run(params, x):
            attacked, _ = objective.perturb(jax.random.key(0), params, {}, x, labels)
            grads, aux = jax.grad(objective.loss, has_aux=True)(params, {}, x, attacked, labels)
            return lax.fori_loop(0, 2, lambda _, p: p - 0.1 * grads, params), aux.logits

        return run

    for make in (objectives.adversarial_cross_entropy, objectives.trades):
        fast = step(make(apply_fn, num_steps=2))
        with native_convolutions():
            native = step(make(apply_fn, num_steps=2))
        assert set(convolutions(fast, k, x)) == {FAST} != set(convolutions(native, k, x))
        assert_close(jax.jit(fast)(k, x), jax.jit(native)(k, x), 1e-5)

    loss = lambda x, k: losses.cross_entropy(head(conv(x[None], k))[:, :4], labels[:1])[0]
    product = lambda: theory.matrix_free_jacobian(
        loss, k, x[0], x[0] + 0.01, norm="linf", eps=0.1
    ).frozen_hessian(k)
    fast = product()
    with native_convolutions():
        assert_close(fast, product(), 1e-5)
