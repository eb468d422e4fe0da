"""The networks: their sizes, initialisations, logits, statistics and derivatives."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxadv import models
from tests.helpers.golden_weights import filled
from tests.helpers.small_models import SMALL


def _small(name, **options):
    return models.build(name, num_classes=3, **SMALL[name], **options)


def _images(batch=4, size=8, channels=3, dtype=np.float32):
    return np.random.default_rng(0).uniform(size=(batch, size, size, channels)).astype(dtype)


def _variables(module, images, dtype=np.float32):
    """Variables drawn with NumPy (no compilation), biases and statistics off their start."""
    rng = np.random.default_rng(1)

    def draw(path, leaf):
        name = path[-1].key
        noise = rng.normal(size=leaf.shape)
        if name == "kernel":
            return jnp.asarray(noise / np.sqrt(np.prod(leaf.shape[:-1])), dtype)
        return jnp.asarray((name in ("scale", "var")) + 0.3 * np.tanh(noise), dtype)

    shapes = jax.eval_shape(module.init, jax.random.key(0), images)
    return jax.tree.map_with_path(draw, shapes)


def _cross_entropy(logits, labels):
    return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(len(labels)), labels])


# ---------------------------------------------------------------- architecture


@pytest.mark.parametrize(
    "name", ["preact_resnet18", pytest.param("wide_resnet34_10", marks=pytest.mark.slow)]
)
def test_logits_are_those_of_the_pytorch_definitions(golden, name):
    reference = json.loads((golden / "torch_models.json").read_text())[name]
    state_dict = {name: filled(t, name, shape) for t, name, shape in reference["tensors"]}
    module = getattr(models, name)(10, mean=None, std=None)
    flat = (0.5 + 0.5 * np.sin(0.05 * np.arange(4 * 3 * 32 * 32))).astype(np.float32)
    images = flat.reshape(4, 3, 32, 32).transpose(0, 2, 3, 1)

    logits = jax.jit(module.apply)(models.from_torch_state_dict(state_dict, module), images)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, reference["eval_logits_float32"], atol=1e-4)
    with jax.enable_x64(True):
        variables = models.from_torch_state_dict(state_dict, module, dtype=np.float64)
        images = images.astype(np.float64)
        logits = jax.jit(module.apply)(variables, images)
        assert logits.dtype == np.float64
        np.testing.assert_allclose(logits, reference["eval_logits_float64"], atol=1e-8)
        logits = jax.jit(lambda v, x: module.apply(v, x, train=True))(variables, images)
        np.testing.assert_allclose(logits, reference["train_logits_float64"], atol=1e-8)


@pytest.mark.parametrize(
    ("module", "count"),
    [
        (models.preact_resnet18(10), 11_172_170),
        (models.preact_resnet18(100), 11_218_340),
        (models.wide_resnet34_10(10), 46_160_474),
    ],
)
def test_parameter_counts(module, count):
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    variables = jax.eval_shape(module.init, jax.random.key(0), images)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == count


@pytest.mark.parametrize("size", [(8, 8), (28, 28), (12, 20)])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", SMALL)
def test_other_image_sizes_and_channels(name, size, channels):
    module = _small(name, mean=(0.5,) * channels, std=(0.25,) * channels)
    images = jax.ShapeDtypeStruct((2, *size, channels), jnp.float32)
    logits, _ = jax.eval_shape(module.init_with_output, jax.random.key(0), images)
    assert logits.shape == (2, 3)


def test_shortcut_of_the_raw_input_is_another_network():
    images = _images()
    activated, raw = (_small("preact_resnet18", shortcut_input=s) for s in ("activated", "raw"))
    variables = _variables(activated, images)
    apart = jax.jit(lambda v, x: activated.apply(v, x) - raw.apply(v, x))(variables, images)
    assert np.abs(apart).max() > 1e-3


@pytest.mark.parametrize(
    "name",
    [
        "wide_resnet",
        pytest.param("preact_resnet18", marks=pytest.mark.slow),
        pytest.param("resnet18_cifar", marks=pytest.mark.slow),
    ],
)
def test_standardization_of_each_image(x64, name):
    """Against NumPy, also where an image is constant and only the lower bound divides."""
    images = _images(dtype=np.float64)
    images[1] = 0.5 + 1e-4 * images[1]
    images[2] = 0.25
    inside = _small(name, mean=None, std=None, standardize="image")
    outside = _small(name, mean=None, std=None)
    variables = _variables(outside, images, np.float64)
    flat = images.reshape(4, -1)
    std = np.maximum(flat.std(1, ddof=1), 1 / np.sqrt(8 * 8 * 3))
    shifted = ((flat - flat.mean(1)[:, None]) / std[:, None]).reshape(images.shape)
    np.testing.assert_allclose(
        jax.jit(inside.apply)(variables, images),
        jax.jit(outside.apply)(variables, shifted),
        atol=1e-12,
    )
    slopes = jax.jit(jax.grad(lambda x: inside.apply(variables, x).sum()))(images)
    assert np.isfinite(slopes).all() and np.abs(slopes).min((1, 2, 3)).max() > 0


def test_mean_sparse_against_numpy():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, 3, 2, 5)).astype(np.float32)
    stats = {"mean": jnp.arange(5) / 10, "var": jnp.arange(5) / 2, "threshold": jnp.asarray(0.5)}
    module = models.MeanSparse()
    apply = lambda x: module.apply({"batch_stats": stats}, x)
    mean, reach = np.arange(5) / 10, 0.5 * np.sqrt(np.arange(5) / 2)
    near = np.abs(x - mean) < reach
    assert 20 < near.sum() < 100
    np.testing.assert_allclose(apply(x), np.where(near, mean, x), atol=1e-7)
    np.testing.assert_array_equal(jax.grad(lambda x: apply(x).sum())(x), ~near)
    start = module.init(jax.random.key(0), x)
    np.testing.assert_array_equal(module.apply(start, x), x)


@pytest.mark.parametrize("name", ["preact_resnet18", "mlp"])
def test_normalisation_is_inside(name):
    images = _images()
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 2.0)
    inside = _small(name, mean=mean, std=std)
    outside = _small(name, mean=None, std=None)
    variables = _variables(inside, images)
    shifted = (images - np.float32(mean)) / np.float32(std)
    a, b = (jax.jit(m.apply)(variables, x) for m, x in ((inside, images), (outside, shifted)))
    np.testing.assert_allclose(a, b, atol=1e-5)


# -------------------------------------------------------------- initialisation


def _leaves(module, size=8):
    params = jax.jit(module.init)(jax.random.key(3), jnp.zeros((1, size, size, 3)))["params"]
    return {jax.tree_util.keystr(p): np.asarray(v) for p, v in jax.tree.leaves_with_path(params)}


def _assert_uniform(values, fan_in, name):
    bound = 1 / np.sqrt(fan_in)
    assert np.abs(values).max() <= bound, name
    if values.size > 200:  # standard errors of max, mean and variance of U(-b, b)
        assert np.abs(values).max() > bound * (1 - 20 / values.size), name
        assert abs(values.mean()) < 4 * bound / np.sqrt(3 * values.size), name
        assert abs(values.var() * 3 / bound**2 - 1) < 4 * np.sqrt(0.8 / values.size), name


def test_preact_resnet_starts_as_pytorch_does():
    for name, values in _leaves(models.preact_resnet18(200, width=16, blocks=(1, 1))).items():
        if "kernel" in name:
            _assert_uniform(values, np.prod(values.shape[:-1]), name)
        elif "linear" in name:
            _assert_uniform(values, 32, name)
            assert values.std() > 0
        else:
            np.testing.assert_array_equal(values, float("scale" in name), name)


def test_wide_resnet_starts_as_the_reference_code_does():
    for name, values in _leaves(models.wide_resnet34_10(200, depth=10, widen_factor=1)).items():
        if "fc" in name and "kernel" in name:
            _assert_uniform(values, 64, name)
        elif "kernel" in name:
            std = np.sqrt(2 / (values.shape[0] * values.shape[1] * values.shape[3]))
            assert abs(values.std() / std - 1) < 4 / np.sqrt(2 * values.size), name
            assert np.abs(values).max() > 2.2 * std, name  # a normal that is not truncated at 2
        else:
            np.testing.assert_array_equal(values, float("scale" in name), name)


# ------------------------------------------------------------------- BatchNorm


@pytest.mark.parametrize("unbiased", [True, False])
def test_batch_norm_against_numpy(unbiased):
    rng = np.random.default_rng(0)
    x = rng.normal(3, 2, size=(4, 3, 2, 5)).astype(np.float32)
    module = models.BatchNorm(unbiased=unbiased)
    variables = {
        "params": {"scale": jnp.arange(1.0, 6), "bias": jnp.arange(5.0)},
        "batch_stats": {"mean": jnp.full(5, 0.5), "var": jnp.full(5, 2.0)},
    }
    y, moved = module.apply(variables, x, train=True, mutable=["batch_stats"])
    rows = x.reshape(-1, 5).astype(np.float64)
    mean, var = rows.mean(0), rows.var(0)
    expected = (rows - mean) / np.sqrt(var + 1e-5) * np.arange(1, 6) + np.arange(5)
    np.testing.assert_allclose(y.reshape(-1, 5), expected, atol=1e-5)
    kept = rows.var(0, ddof=1) if unbiased else var
    np.testing.assert_allclose(moved["batch_stats"]["mean"], 0.9 * 0.5 + 0.1 * mean, rtol=1e-6)
    np.testing.assert_allclose(moved["batch_stats"]["var"], 0.9 * 2.0 + 0.1 * kept, rtol=1e-6)

    np.testing.assert_array_equal(module.apply(variables, x, train=True), y)  # nothing to move
    evaluated = (rows - 0.5) / np.sqrt(2 + 1e-5) * np.arange(1, 6) + np.arange(5)
    np.testing.assert_allclose(
        module.apply(variables, x, train=False).reshape(-1, 5), evaluated, atol=1e-5
    )


def test_batch_norm_of_a_far_mean_is_accurate():
    """E[x^2] - E[x]^2 would lose all digits here."""
    x = (1000 + np.random.default_rng(0).normal(size=(64, 2))).astype(np.float32)
    module = models.BatchNorm()
    y = module.apply(module.init(jax.random.key(0), x, train=False), x, train=True)
    np.testing.assert_allclose(y.std(0), 1, atol=1e-3)


def test_batch_norm_needs_two_values():
    module = models.BatchNorm()
    x = jnp.ones((1, 1, 1, 2))
    variables = module.init(jax.random.key(0), x, train=False)
    with pytest.raises(ValueError, match="at least 2"):
        module.apply(variables, x, train=True)


def test_initialisation_does_not_move_the_statistics():
    module = _small("preact_resnet18")
    init = jax.jit(lambda key, x: module.init(key, x, train=True))
    stats = init(jax.random.key(0), _images())["batch_stats"]
    for path, value in jax.tree.leaves_with_path(stats):
        np.testing.assert_array_equal(value, float("var" in jax.tree_util.keystr(path)))


# ----------------------------------------------------------------- derivatives


@pytest.mark.parametrize(
    ("name", "train"),
    [
        pytest.param("preact_resnet18", False, marks=pytest.mark.slow),
        ("preact_resnet18", True),
        pytest.param("wrn34_10", True, marks=pytest.mark.slow),
        ("small_convnet", False),
        ("mlp", False),
    ],
)
def test_derivatives_against_finite_differences(x64, name, train):
    module = _small(name, activation="softplus", param_dtype=jnp.float64)
    images = jnp.asarray(_images(dtype=np.float64))
    variables = _variables(module, images, np.float64)
    labels = jnp.array([0, 2, 1, 1])
    rng = np.random.default_rng(2)
    params, stats = variables["params"], {k: v for k, v in variables.items() if k != "params"}
    point = (params, images)
    direction = jax.tree.map(lambda v: jnp.asarray(rng.normal(size=v.shape)) * 0.1, point)

    def loss(point):
        logits = module.apply({"params": point[0], **stats}, point[1], train=train)
        return _cross_entropy(logits, labels)

    @jax.jit
    def all_of(point):
        gradient, product = jax.jvp(jax.grad(loss), (point,), (direction,))
        return loss(point), gradient, product

    h = 1e-5
    ahead, behind = (
        all_of(jax.tree.map(lambda p, d, s=s: p + s * h * d, point, direction)) for s in (1, -1)
    )
    _, gradient, product = all_of(point)
    slope = sum(
        jnp.vdot(g, d)
        for g, d in zip(jax.tree.leaves(gradient), jax.tree.leaves(direction), strict=True)
    )
    np.testing.assert_allclose(slope, (ahead[0] - behind[0]) / (2 * h), rtol=1e-6, atol=1e-9)
    for p, a, b in zip(*(jax.tree.leaves(t) for t in (product, ahead[1], behind[1])), strict=True):
        np.testing.assert_allclose(p, (a - b) / (2 * h), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", SMALL)
def test_vmap_over_images_and_over_members(name):
    module = _small(name)
    images = _images()
    one = _variables(module, images)
    two = jax.tree.map(lambda v: v * 1.1, one)
    both = jax.tree.map(lambda *v: jnp.stack(v), one, two)
    apply = jax.jit(module.apply)
    expected = np.stack([apply(v, images) for v in (one, two)])
    members = jax.jit(jax.vmap(module.apply, (0, None)))(both, images)
    np.testing.assert_allclose(members, expected, atol=1e-5)
    single = jax.jit(jax.vmap(lambda x: module.apply(one, x[None])[0]))(images)
    np.testing.assert_allclose(single, expected[0], atol=1e-5)


@pytest.mark.parametrize("name", ["preact_resnet18", "small_convnet"])
def test_an_attack_in_a_loop_equals_the_attack_unrolled(name):
    module = _small(name)
    images, labels = _images(), jnp.array([0, 2, 1, 1])
    variables = _variables(module, images)

    @jax.jit
    def step(x):
        gradient = jax.grad(
            lambda x: _cross_entropy(module.apply(variables, x, train=True), labels)
        )
        return x + 0.1 * gradient(x)

    rolled = jax.jit(lambda x: lax.fori_loop(0, 3, lambda _, x: step(x), x))(images)
    unrolled = step(step(step(images)))
    assert np.abs(unrolled - images).max() > 1e-4
    np.testing.assert_allclose(rolled, unrolled, atol=1e-6)


@pytest.mark.parametrize("name", ["preact_resnet18", "small_convnet"])
def test_explicit_and_native_gradients_agree(name):
    images = _images()
    variables = _variables(_small(name), images)

    def gradient(mode):
        module = _small(name, gradients=mode)
        return jax.jit(jax.grad(lambda v: jnp.sum(module.apply(v, images, train=True) ** 2)))(
            variables
        )

    for a, b in zip(*(jax.tree.leaves(gradient(m)) for m in ("explicit", "native")), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


# -------------------------------------------------------------------- precision


@pytest.mark.parametrize("name", SMALL)
def test_bfloat16_computation(name):
    images = _images()
    full, mixed = _small(name), _small(name, dtype=jnp.bfloat16)
    variables = jax.eval_shape(mixed.init, jax.random.key(0), images)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
    variables = _variables(mixed, images)

    def run(module):
        def loss(params):
            logits, moved = module.apply(
                {**variables, "params": params}, images, train=True, mutable=["batch_stats"]
            )
            return jnp.sum(logits**2), (logits, moved)

        return jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"])

    (_, (logits, moved)), gradient = run(mixed)
    forward = jax.jit(lambda v, x: full.apply(v, x, train=True))
    exact = forward(variables, images)
    dtypes = {leaf.dtype for leaf in jax.tree.leaves((logits, moved, gradient))}
    assert dtypes == {jnp.dtype(jnp.float32)}
    # Some images are ill-conditioned: rounding the arguments alone moves their logits as far.
    short = lambda leaf: jnp.asarray(leaf, jnp.bfloat16).astype(jnp.float32)
    rounded = forward(*jax.tree.map(short, (variables, images)))
    apart = lambda found: np.abs(found - exact).max(axis=1)
    assert 1e-6 < apart(logits).max()
    assert (apart(logits) < 4 * apart(rounded) + 0.1 * np.abs(exact).max() + 0.05).all()


# ------------------------------------------------------------------- misuse


def test_names_and_options():
    assert set(SMALL) == set(models.MODELS)
    assert isinstance(models.build("wrn34_10", depth=16), models.WideResNet)
    with pytest.raises(ValueError, match="Did you mean 'preact_resnet18'"):
        models.build("preact_resnet_18")
    for name in ("preact_resnet18", "dm_preact_resnet18", "resnet18_cifar"):
        with pytest.raises(ValueError, match="Did you mean 'width'"):
            models.build(name, widht=3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: models.preact_resnet18(0), "num_classes is 0"),
        (lambda: models.preact_resnet18(10, width=2.5), "width is 2.5"),
        (lambda: models.preact_resnet18(10, blocks=(2, 0)), r"blocks\[1\] is 0"),
        (lambda: models.preact_resnet18(10, shortcut_input="x"), "shortcut_input is 'x'"),
        (lambda: models.wide_resnet34_10(10, depth=33), "depth is 33"),
        (lambda: models.wide_resnet(10, padding="SAME"), "padding is 'SAME'; .*\"same\""),
        (lambda: models.wide_resnet(10, names="dm"), "names is 'dm'"),
        (lambda: models.wide_resnet(10, standardize="image"), "pass mean=None, std=None"),
        (lambda: models.resnet18(10, standardize="all"), "standardize is 'all'"),
        (lambda: models.resnet50(10, block="deep"), "block is 'deep'"),
        (lambda: models.preact_resnet18(10, shortcut_size=2), "shortcut_size is 2"),
        (lambda: models.mlp(10, activation="swsh"), "Did you mean 'swish'"),
        (lambda: models.small_convnet(10, activation="rleu"), "Did you mean 'relu'"),
    ],
)
def test_misuse_of_the_factories(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((2, 8, 8, 1), np.float32), "1 channels"),
        (np.zeros((8, 8, 3), np.float32), r"must be \(B, H, W, C\)"),
        (np.zeros((2, 8, 8, 3), np.uint8), "uint8"),
    ],
)
def test_misuse_of_images(images, message):
    with pytest.raises(ValueError, match=message):
        _small("preact_resnet18").init(jax.random.key(0), images)


def test_images_too_small_for_the_strides():
    with pytest.raises(ValueError, match="at least 4"):
        _small("small_convnet").init(jax.random.key(0), np.zeros((2, 3, 3, 1), np.float32))
