"""The convolution: values and derivatives of every order, in and out of loops."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxadv import models
from jaxadv.models import conv2d

CASES = [  # height, width, kernel, stride, padding
    (8, 8, 3, 1, 1),
    (7, 9, 3, 2, 1),
    (9, 6, 4, 2, 1),
    (7, 5, 2, 3, 0),
    (6, 5, 1, 2, 0),
    (5, 5, 1, 1, 0),
    (6, 7, 3, (2, 1), ((0, 1), (2, 0))),
    (7, 7, 3, 2, "SAME"),
]


def _draw(height, width, size, dtype=np.float64, channels=3, features=4, batch=2):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(batch, height, width, channels))
    k = rng.normal(size=(size, size, channels, features))
    return jnp.asarray(x, dtype), jnp.asarray(k, dtype)


def _loss(mode, stride, padding):
    def loss(x, k):
        y = jnp.sin(conv2d(x, k, strides=stride, padding=padding, gradients=mode))
        return jnp.sum(y * jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape))

    return loss


def _assert_close(a, b, rtol):
    for p, q in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        scale = 1 + np.max(np.abs(np.asarray(p, np.float64)))
        np.testing.assert_allclose(p, q, atol=rtol * scale, rtol=0)


def test_value_is_the_sum_of_the_definition(x64):
    x, k = _draw(5, 6, 3)
    padded = np.pad(np.asarray(x), ((0, 0), (1, 1), (1, 1), (0, 0)))
    expected = np.zeros((2, 3, 3, 4))
    for h, w, i, j in itertools.product(range(3), range(3), range(3), range(3)):
        expected[:, h, w] += padded[:, 2 * h + i, 2 * w + j] @ np.asarray(k)[i, j]
    for mode in ("native", "explicit", "auto"):
        y = conv2d(x, k, strides=2, padding=1, gradients=mode)
        np.testing.assert_allclose(y, expected, atol=1e-13)


@pytest.mark.parametrize(("height", "width", "size", "stride", "padding"), CASES)
def test_explicit_equals_native_to_second_order(x64, height, width, size, stride, padding):
    x, k = _draw(height, width, size)
    dx, dk = _draw(width, height, size)
    dx = jnp.swapaxes(dx, 1, 2) * 0.3

    def derivatives(loss):
        grad = jax.grad(loss, (0, 1))

        def product(x, k):
            return sum(jnp.vdot(a, b) for a, b in zip(grad(x, k), (dx, dk), strict=True))

        return {
            "value": loss(x, k),
            "reverse": grad(x, k),
            "forward": jax.jvp(loss, (x, k), (dx, dk))[1],
            "forward over reverse": jax.jvp(grad, (x, k), (dx, dk))[1],
            "reverse over reverse": jax.grad(product, (0, 1))(x, k),
            "forward over forward": jax.jvp(
                lambda *a: jax.jvp(loss, a, (dx, dk))[1], (x, k), (dx, dk)
            )[1],
        }

    explicit, native = (
        jax.jit(lambda m=m: derivatives(_loss(m, stride, padding)))()
        for m in ("explicit", "native")
    )
    _assert_close(explicit, native, 1e-14)
    _assert_close(explicit["forward over reverse"], explicit["reverse over reverse"], 1e-13)


def test_gradients_against_finite_differences(x64):
    x, k = _draw(5, 4, 3)
    dx, dk = x[::-1], k[::-1]
    loss = _loss("explicit", 2, 1)
    h = 1e-6
    slope = (loss(x + h * dx, k + h * dk) - loss(x - h * dx, k - h * dk)) / (2 * h)
    gx, gk = jax.grad(loss, (0, 1))(x, k)
    np.testing.assert_allclose(jnp.vdot(gx, dx) + jnp.vdot(gk, dk), slope, rtol=1e-8)


@pytest.mark.parametrize("axes", [(0, None), (None, 0), (0, 0), (1, 3), (-1, 1)])
def test_vmap_equals_a_python_loop(x64, axes):
    x, k = _draw(6, 5, 3)
    args = [
        a if axis is None else jnp.stack([a, 2 * a, a - 1], axis)
        for a, axis in zip((x, k), axes, strict=True)
    ]
    grad = jax.grad(_loss("explicit", 2, 1), (0, 1))
    got = jax.vmap(grad, axes)(*args)
    for i in range(3):
        one = grad(
            *(
                a if axis is None else jnp.take(a, i, axis)
                for a, axis in zip(args, axes, strict=True)
            )
        )
        _assert_close(jax.tree.map(lambda g, i=i: g[i], got), one, 1e-13)


def test_a_loop_changes_nothing():
    x, k = _draw(8, 8, 3, np.float32)
    loss = _loss("explicit", 1, 1)

    def step(carry):
        gx, gk = jax.grad(loss, (0, 1))(*carry)
        return carry[0] - 0.1 * gx, carry[1] - 0.1 * gk

    rolled = jax.jit(lambda c: lax.fori_loop(0, 3, lambda _, c: step(c), c))((x, k))
    unrolled = (x, k)
    for _ in range(3):
        unrolled = jax.jit(step)(unrolled)
    _assert_close(rolled, unrolled, 1e-5)


@pytest.mark.parametrize("wrt", [0, 1])
@pytest.mark.parametrize(("size", "stride"), [(3, 1), (3, 2), (4, 2)])
def test_derivatives_in_a_loop_are_the_fast_convolution(wrt, size, stride):
    """Every convolution of the program has the one layout that XLA's CPU backend runs fast."""
    x, k = _draw(8, 8, size, np.float32)

    def layouts(mode):
        grad = jax.grad(_loss(mode, stride, 1), wrt)
        args = [x, k]

        def run(z):
            def body(z, _):
                args[wrt] = z
                return z - 0.1 * grad(*args), None

            return lax.scan(body, z, None, length=3)[0]

        text = jax.jit(run).lower(args[wrt]).compile().as_text()
        return set(re.findall(r"dim_labels=(\S+?)[,\s]", text))

    assert layouts("explicit") == {"b01f_01io->b01f"}
    assert layouts("native") != layouts("explicit")  # or the explicit form is not needed any more


PLAIN = "[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]"
ADJOINTS = {"[b, 0, 1, f]x[0, 1, o, i]->[b, 0, 1, f]", "[f, 0, 1, b]x[i, 0, 1, o]->[0, 1, b, f]"}


def _layouts(function, args, platform):
    """The layouts of the convolutions of a program lowered for a platform that is not here."""
    lowered = jax.jit(function).trace(*args).lower(lowering_platforms=(platform,))
    return set(re.findall(r"dim_numbers = (\S.*?), window", lowered.as_text()))


@pytest.mark.parametrize("platform", ["cuda", "rocm", "tpu", "cpu"])
def test_the_form_is_that_of_the_platform_that_is_lowered_for(platform):
    explicit = platform == "cpu"
    x, k = _draw(8, 8, 3, np.float32)
    grad = jax.grad(_loss("auto", 2, 1), (0, 1))
    assert _layouts(grad, (x, k), platform) == ({PLAIN} if explicit else {PLAIN} | ADJOINTS)
    # a 1x1 convolution is a product on CPU
    x, k = _draw(8, 8, 1, np.float32)
    grad = jax.grad(_loss("auto", 2, 0), (0, 1))
    assert _layouts(grad, (x, k), platform) == (set() if explicit else {PLAIN} | ADJOINTS)
    # the other modes are the same everywhere
    x, k = _draw(8, 8, 3, np.float32)
    grad = lambda mode: jax.grad(_loss(mode, 2, 1), (0, 1))
    assert _layouts(grad("explicit"), (x, k), platform) == {PLAIN}
    assert _layouts(grad("native"), (x, k), platform) == {PLAIN} | ADJOINTS


def test_one_export_for_all_platforms():
    """Derivatives of second order, under vmap and in a loop: what runs here are the same bits."""
    x, k = _draw(8, 8, 3, np.float32)
    grad = jax.grad(_loss("auto", 2, 1), (0, 1))
    stacked = jnp.stack([x, 2 * x]), jnp.stack([k, 3 * k])

    def function(x, k):
        product = jax.jvp(grad, (x, k), (x, k))[1]
        mapped = jax.vmap(grad)(*stacked)
        looped = lax.fori_loop(0, 2, lambda _, z: jax.tree.map(jnp.subtract, z, grad(*z)), (x, k))
        return product, mapped, looped

    platforms = ("cuda", "rocm", "tpu", "cpu")
    exported = jax.export.export(jax.jit(function), platforms=platforms)(x, k)
    for got, expected in zip(
        jax.tree.leaves(exported.call(x, k)), jax.tree.leaves(jax.jit(function)(x, k)), strict=True
    ):
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("precision", [None, "highest", "tensorfloat32"])
@pytest.mark.parametrize("mode", ["auto", "explicit"])
def test_precision_is_that_of_the_trace(precision, mode):
    x, k = _draw(8, 8, 3, np.float32)

    def function(x, k):
        with jax.default_matmul_precision(precision):
            return jax.grad(_loss(mode, 1, 1), (0, 1))(x, k)

    text = jax.jit(function).trace(x, k).lower(lowering_platforms=("cuda",)).as_text()
    found = re.findall(
        r"stablehlo\.convolution.*precision (\w+)>, #stablehlo<precision (\w+)>", text
    )
    named = {None: "DEFAULT", "highest": "HIGHEST", "tensorfloat32": "HIGH"}[precision]
    assert len(found) == 3 and set(found) == {(named, named)}


@pytest.mark.parametrize("check_vma", [False, True])
def test_gradients_are_summed_over_the_devices_of_a_shard_map(check_vma):
    mesh = jax.make_mesh((2,), ("batch",), (jax.sharding.AxisType.Auto,))
    split, whole = jax.sharding.PartitionSpec("batch"), jax.sharding.PartitionSpec()
    x, k = _draw(8, 8, 3, np.float32)

    def gradients(mode):
        def function(x, k):
            loss = lambda x, k: (conv2d(x, k, padding=1, gradients=mode) ** 2).sum()
            gx, gk = jax.grad(loss, (0, 1))(x, k)
            # With varying axes JAX sums the gradient of what all devices share.
            return gx, gk if check_vma else lax.psum(gk, "batch")

        specs = dict(in_specs=(split, whole), out_specs=(split, whole), check_vma=check_vma)
        return jax.jit(jax.shard_map(function, mesh=mesh, **specs))(x, k)

    alone = jax.grad(lambda x, k: (conv2d(x, k, padding=1) ** 2).sum(), (0, 1))(x, k)
    for mode in ("auto", "explicit", "native"):
        _assert_close(jax.tree.map(np.asarray, gradients(mode)), alone, 1e-5)


def test_no_kernel_gradient_where_only_the_images_are_differentiated():
    x, k = _draw(8, 8, 3, np.float32)
    convolutions = str(jax.make_jaxpr(jax.grad(_loss("explicit", 1, 1)))(x, k)).count("jaxadv_conv")
    assert convolutions == 2  # forward and the gradient with respect to the images


def test_an_empty_batch_gives_zero_gradients():
    x, k = _draw(8, 8, 3, np.float32)
    gx, gk = jax.grad(_loss("explicit", 1, 1), (0, 1))(x[:0], k)
    assert gx.shape == (0, 8, 8, 3)
    np.testing.assert_array_equal(gk, np.zeros(k.shape))


def test_bfloat16_stays_bfloat16():
    x, k = _draw(8, 8, 3, jnp.bfloat16)
    grads = jax.grad(lambda x, k: conv2d(x, k, padding=1).sum(), (0, 1))(x, k)
    assert {g.dtype for g in grads} == {jnp.dtype(jnp.bfloat16)}


def test_bias_of_the_module():
    module = models.Conv(4, padding=1, use_bias=True, bias_init=jax.nn.initializers.ones)
    x, _ = _draw(5, 5, 3, np.float32)
    variables = module.init(jax.random.key(0), x)
    without = conv2d(x, variables["params"]["kernel"], padding=1)
    np.testing.assert_allclose(module.apply(variables, x), without + 1, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(gradients="fast"), "gradients is 'fast'"),
        (dict(images=jnp.zeros((2, 8, 8, 5))), "with the same C"),
        (dict(images=jnp.zeros((8, 8, 3))), "with the same C"),
        (dict(kernel=jnp.zeros((3, 3, 3, 4), jnp.bfloat16)), "cast one of them"),
    ],
)
def test_misuse(change, message):
    x, k = _draw(8, 8, 3, np.float32)
    args = {"images": x, "kernel": k, **change}
    with pytest.raises(ValueError, match=message):
        conv2d(args.pop("images"), args.pop("kernel"), **args)
