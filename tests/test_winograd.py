"""Winograd's form of 3x3 convolutions: what it computes, and where it is used."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxadv import _winograd, models
from jaxadv._convolution import conv_p
from jaxadv._rewrite import fast_convolutions
from jaxadv._spread import spread_over
from tests.helpers import collectives

MESH = jax.make_mesh((2,), ("batch",), (AxisType.Auto,))
ROWS = NamedSharding(MESH, PartitionSpec("batch"))
SAME, VALID, UNEVEN = ((1, 1), (1, 1)), ((0, 0), (0, 0)), ((2, 0), (0, 1))
LARGE = (8, 32, 32, 64)  # with 64 features, the smallest of its kind that is worth it
NHWC = ("NHWC", "HWIO", "NHWC")


@pytest.fixture
def always(monkeypatch):
    """The form is used whatever it costs."""
    for name in ("_CHANNELS", "_TILES", "_OPERATIONS"):
        monkeypatch.setattr(_winograd, name, 1)
    monkeypatch.setattr(_winograd, "_TYPES", (jnp.float32, jnp.float64))


def operands(images=(4, 8, 8, 5), features=3, dtype=jnp.float32, mean=0.0):
    rng = np.random.default_rng(0)
    x = jnp.asarray(mean + rng.normal(size=images), dtype)
    return x, jnp.asarray(rng.normal(size=(3, 3, images[3], features)), dtype)


def plain(x, w, padding=SAME, precision=None):
    return jax.lax.conv_general_dilated(
        x, w, (1, 1), padding, dimension_numbers=NHWC, precision=precision
    )


def ours(x, w, padding=SAME):
    return models.conv2d(x, w, padding=padding)


def all_of(conv, x, w):
    """Values, both modes, and a derivative of both gradients."""
    rng = np.random.default_rng(1)
    like = lambda a: jnp.asarray(rng.normal(size=a.shape), a.dtype)

    @jax.jit
    def run(x, w, g, tangents):
        pull = lambda x, w: jax.vjp(conv, x, w)[1](g)
        forward, mixed = (jax.jvp(f, (x, w), tangents)[1] for f in (conv, pull))
        return conv(x, w), pull(x, w), forward, mixed

    return jax.tree.leaves(run(x, w, like(jax.eval_shape(conv, x, w)), (like(x), like(w))))


@pytest.mark.parametrize("padding", [SAME, VALID, UNEVEN])
@pytest.mark.parametrize("images", [(4, 8, 8, 5), (3, 7, 9, 2), (2, 3, 3, 1), (1, 4, 5, 3)])
def test_values_and_derivatives_are_those_of_the_plain_convolution(x64, always, images, padding):
    x, w = operands(images, dtype=jnp.float64)
    both = (functools.partial(conv, padding=padding) for conv in (ours, plain))
    for found, expected in zip(*(all_of(conv, x, w) for conv in both), strict=True):
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12 * np.abs(expected).max())


@pytest.mark.parametrize("rows", [1, 2, 6])
def test_blocks_of_images_are_the_same(x64, always, monkeypatch, rows):
    x, w = operands((6, 6, 6, 2), dtype=jnp.float64)
    expected = all_of(ours, x, w)
    monkeypatch.setattr(_winograd, "_rows_at_once", lambda *_: rows)
    for found, whole in zip(all_of(ours, x, w), expected, strict=True):
        np.testing.assert_allclose(found, whole, rtol=0, atol=1e-13 * np.abs(whole).max())


def test_as_many_images_at_once_as_the_cache_holds():
    rows = lambda *shape: _winograd._rows_at_once(jnp.zeros(shape), shape[3], shape[1:3])
    assert rows(64, 32, 32, 64) == 4
    assert rows(63, 32, 32, 64) == 3
    assert rows(61, 32, 32, 64) == 1
    assert rows(64, 4, 4, 512) == 32
    assert rows(61, 2, 2, 512) == 61  # one image at once has too few tiles


@pytest.mark.parametrize("mean", [0.0, 1.0, 100.0])
def test_rounding_is_that_of_the_plain_convolution(mean):
    x, w = operands(LARGE, 64, mean=mean)
    with jax.enable_x64(True):
        exact = all_of(plain, *(jnp.asarray(a, jnp.float64) for a in (x, w)))
    exact = [np.asarray(true) for true in exact]
    assert not has_convolutions(ours, x, w)
    both = (map(np.asarray, all_of(conv, x, w)) for conv in (ours, plain))
    for found, direct, true in zip(*both, exact, strict=True):
        error = lambda a, true=true: np.sqrt(np.mean((a - true) ** 2))
        assert 0 < error(found) < 1.5 * error(direct)


def has_convolutions(conv, *args, platform="cpu", within=jax.jit):
    """Whether the program has a convolution, before XLA's optimizations."""
    return "stablehlo.convolution" in (
        within(conv).trace(*args).lower(lowering_platforms=(platform,)).as_text()
    )


def test_used_for_large_float32_convolutions_on_cpu_only():
    x, w = operands(LARGE, 64)
    gradients = jax.grad(lambda x, w: ours(x, w).sum(), (0, 1))
    assert not has_convolutions(ours, x, w)
    assert not has_convolutions(lambda x, w: gradients(x, w)[0], x, w)
    assert not has_convolutions(lambda x, w: gradients(x, w)[1], x, w)
    assert has_convolutions(ours, x, w, platform="cuda")
    assert has_convolutions(ours, x[:7], w)
    assert has_convolutions(ours, x[..., :31], w[:, :, :31])
    assert has_convolutions(ours, x.astype(jnp.bfloat16), w.astype(jnp.bfloat16))
    with models.native_convolutions():
        assert has_convolutions(fast_convolutions(plain), x, w)
    assert not has_convolutions(fast_convolutions(plain), x, w)
    strided = lambda x, w: models.conv2d(x, w, strides=(2, 2), padding=SAME)
    assert has_convolutions(strided, *operands((64, 32, 32, 64), 64))
    dilated = lambda x, w: jax.lax.conv_general_dilated(
        x, w, (1, 1), "SAME", rhs_dilation=(2, 2), dimension_numbers=NHWC
    )
    assert has_convolutions(fast_convolutions(dilated), x, w)
    five = jnp.zeros((5, 5, 64, 64))
    assert has_convolutions(lambda x, w: models.conv2d(x, w, padding="SAME"), x, five)
    few = operands((512, 2, 2, 512), 512)
    assert not has_convolutions(ours, *few)
    assert has_convolutions(ours, few[0][:63], few[1])  # its tiles are fewer than 64


@pytest.mark.parametrize("precision", ["highest", jax.lax.Precision.HIGHEST])
def test_the_highest_precision_is_the_plain_convolution(precision):
    x, w = operands(LARGE, 64)
    of = lambda precision: fast_convolutions(functools.partial(plain, precision=precision))
    assert has_convolutions(of(precision), x, w)
    assert not has_convolutions(of("high"), x, w)


@pytest.mark.parametrize("precision", ["highest", "float32"])
def test_the_highest_precision_around_a_model(precision):
    x, w = operands(LARGE, 64)
    with jax.default_matmul_precision(precision):
        assert has_convolutions(lambda x, w: ours(x, w), x, w)


def test_an_image_has_the_same_bits_wherever_it_is():
    x, w = operands(LARGE, 64)
    order = np.random.default_rng(0).permutation(len(x))
    run = jax.jit(ours)
    np.testing.assert_array_equal(run(x[order], w), run(x, w)[order])
    spoiled = x.at[3].set(jnp.inf)
    others = np.arange(len(x)) != 3
    np.testing.assert_array_equal(run(spoiled, w)[others], run(x, w)[others])


def test_a_convolution_and_its_adjoint_share_the_factors_of_the_kernel():
    """Turning the kernel round would transpose it, which takes longer than the products."""
    x, w = operands(LARGE, 64)
    adjoint = lambda g, w: conv_p.bind(w, g, **parameters("images"))
    text = jax.jit(adjoint).trace(x, w).lower().as_text()
    assert "stablehlo.reverse" not in text
    assert "stablehlo.transpose" not in text


def parameters(missing):
    equation = jax.make_jaxpr(ours)(*operands(LARGE, 64)).eqns[0]
    return equation.params | {"missing": missing}


# ------------------------------------------------------------- several devices


def gradients(conv):
    return jax.grad(lambda x, w: (conv(x, w) ** 2).sum(), (0, 1))


def split(conv, x, w):
    """Gradients compiled for images split over two devices, as in a training program."""

    @spread_over(ROWS)
    def run(x, w):
        x = jax.lax.with_sharding_constraint(x, ROWS)
        found = gradients(fast_convolutions(conv))(x, w)
        return jax.lax.with_sharding_constraint(found[0], ROWS), found[1]

    return jax.jit(run).lower(x, w)


@pytest.mark.parametrize("conv", [plain, ours])
def test_devices_exchange_only_the_sum_of_the_kernel_gradient(conv):
    x, w = operands((16, 32, 32, 64), 64)
    program = split(conv, x, w)
    assert "stablehlo.convolution" not in program.as_text()
    compiled = program.compile()
    assert collectives.counts(compiled.as_text()) == {"all-reduce": 1}
    expected = jax.jit(gradients(plain))(x, w)
    for found, true in zip(compiled(x, w), expected, strict=True):
        np.testing.assert_allclose(found, true, rtol=0, atol=1e-5 * np.abs(true).max())


def test_layouts_of_pytorch_are_split_by_their_images():
    x, w = operands((16, 32, 32, 64), 64)
    numbers = ("NCHW", "OIHW", "NCHW")
    conv = lambda x, w: jax.lax.conv_general_dilated(x, w, (1, 1), SAME, dimension_numbers=numbers)
    given = x.transpose(0, 3, 1, 2), w.transpose(3, 2, 0, 1)
    program = split(conv, *given)
    assert "stablehlo.convolution" not in program.as_text()
    expected = jax.jit(gradients(conv))(*given)
    for found, true in zip(program.compile()(*given), expected, strict=True):
        np.testing.assert_allclose(found, true, rtol=0, atol=1e-5 * np.abs(true).max())


def test_left_to_the_compiler_if_a_device_has_too_few_images():
    assert "stablehlo.convolution" in split(ours, *operands(LARGE, 64)).as_text()
    x, w = operands((16, 32, 32, 64), 64)

    def unspread(x, w):
        x = jax.lax.with_sharding_constraint(x, ROWS)
        return ours(x, w)

    assert has_convolutions(unspread, x, w)  # nothing says how it may be split


@pytest.mark.parametrize("check", [True, False])
def test_in_a_shard_map_of_ones_own(check):
    x, w = operands((32, 32, 32, 64), 64)

    def local(x, w):
        found = gradients(ours)(x, w)
        return found if check else (found[0], jax.lax.psum(found[1], "batch"))

    rows, everywhere = PartitionSpec("batch"), PartitionSpec()
    run = jax.shard_map(
        local, mesh=MESH, in_specs=(rows, everywhere), out_specs=(rows, everywhere),
        check_vma=check,
    )  # fmt: skip
    placed = jax.device_put(x, ROWS)
    assert not has_convolutions(run, placed, w)
    for found, true in zip(run(placed, w), jax.jit(gradients(plain))(x, w), strict=True):
        np.testing.assert_allclose(found, true, rtol=0, atol=1e-5 * np.abs(true).max())


@pytest.mark.parametrize("inside", [True, False])
def test_mapped_convolutions(inside):
    x, w = operands((16, 32, 32, 64), 64)
    stacked = jnp.stack([x, x + 1])

    def mapped(conv):
        return lambda x, w: jax.vmap(lambda x: conv(x, w))(x)

    @jax.jit
    @spread_over(ROWS)
    def run(x, w):
        x = jax.lax.with_sharding_constraint(x, NamedSharding(MESH, PartitionSpec(None, "batch")))
        conv = mapped(fast_convolutions(ours)) if inside else fast_convolutions(mapped(ours))
        return conv(x, w)

    expected = jax.jit(mapped(plain))(stacked, w)
    found = run(stacked, w)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
