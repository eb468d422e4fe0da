"""Whatever is passed as a model is attacked as it is now, and compiled once."""

import functools
import resource

import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxadv import attacks, losses, theory, training
from tests.helpers.compilations import compilations
from tests.helpers.small_attacks import SMALL

KEY = jax.random.key(0)
IMAGES = jax.random.uniform(jax.random.key(1), (6, 4, 4, 1))
WEIGHTS = jax.random.normal(jax.random.key(2), (16, 5))
flat = lambda x: x.reshape(len(x), -1)
MODEL = lambda x: flat(x) @ WEIGHTS
LABELS = MODEL(IMAGES).argmax(1).astype(jnp.int32)
THREAT = dict(norm="linf", eps=0.1)


def images_of(attack, model, **options):
    return getattr(attacks, attack)(KEY, model, IMAGES, LABELS, **THREAT, **options)


def moved(attack, model):
    """Where an attack ends, whether or not the point is misclassified."""
    found = images_of(attack, model, **SMALL[attack])
    return getattr(found, "best_images", found)


ATTACKS = {name: functools.partial(moved, name) for name in SMALL} | {
    "autoattack": lambda model: attacks.autoattack(
        KEY, model, IMAGES, LABELS, eps=0.1, version="custom", attacks=["apgd-ce", "square"],
        num_steps=4, num_queries=20, progress=False,
    ).images,
}  # fmt: skip


class Holder:
    def __init__(self, w):
        self.w = w

    def __call__(self, x):
        return flat(x) @ self.w

    def method(self, x):
        return self(x)


class Module(nnx.Module):
    def __init__(self, w):
        self.w = nnx.Param(w)

    def __call__(self, x):
        return flat(x) @ self.w[...]


def changed_object(w):
    model = Holder(w)
    return model, lambda new: setattr(model, "w", new)


def changed_method(w):
    model = Holder(w)
    return model.method, lambda new: setattr(model, "w", new)


def changed_module(w):
    model = Module(w)
    return model, lambda new: model.w.set_value(new)


def reassigned_name(w):
    def model(x):
        return flat(x) @ w

    def change(new):
        nonlocal w
        w = new

    return model, change


def changed_numpy(w):
    held = np.array(w)
    return lambda x: flat(x) @ held, lambda new: held.__setitem__(..., new)


CHANGING = [changed_object, changed_method, changed_module, reassigned_name, changed_numpy]


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("form", CHANGING)
def test_the_weights_of_now_are_attacked_and_nothing_recompiles(attack, form):
    model, change = form(WEIGHTS)
    run = ATTACKS[attack]
    run(model)
    change(-WEIGHTS)
    wanted = run(lambda x: flat(x) @ -WEIGHTS)
    with compilations() as compiled:
        found = run(model)
    np.testing.assert_array_equal(found, wanted)
    assert not compiled


@pytest.mark.parametrize(
    "attack",
    [name if name == "pgd" else pytest.param(name, marks=pytest.mark.slow) for name in ATTACKS],
)
def test_new_lambdas_neither_recompile_nor_grow_memory(attack):
    run = ATTACKS[attack]
    size = 2**17 if attack == "autoattack" else 2**19  # half a MB, 2 MB of weights a model

    def model(seed):
        extra = jax.random.normal(jax.random.key(seed), (size,))
        return lambda x: flat(x) @ (WEIGHTS + extra[0])

    run(model(0))
    with compilations() as compiled:
        for seed in range(1, 6):
            run(model(seed))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for seed in range(6, 46):
            run(model(seed))
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert not compiled
    assert after - before < 40 * size * 4 / 1024 / 2  # kB: not half of the models


def test_a_store_refuses_the_same_object_with_other_weights(tmp_path):
    model, change = changed_module(WEIGHTS)
    run = lambda: attacks.autoattack(
        KEY, model, IMAGES, LABELS, eps=0.1, version="custom", attacks="apgd-ce", num_steps=3,
        store=tmp_path / "store", progress=False,
    )  # fmt: skip
    first = run()
    np.testing.assert_array_equal(run().images, first.images)
    change(WEIGHTS * 1.0001)
    with pytest.raises(ValueError, match="another evaluation"):
        run()


def test_theory_and_landscape_see_the_weights_of_now():
    class Loss:
        scale = np.ones(())

        def __call__(self, x, theta):
            return -0.5 * jnp.sum((self.scale * x - theta) ** 2)

    loss = Loss()
    x, theta = np.zeros(2), np.array([0.0, 0.5])
    value = lambda: theory.attack_jacobian(loss, theta, x, norm="l2", eps=1.0, x_adv=x + 0.1).value
    assert abs(value() + 0.085) < 1e-9
    loss.scale = np.full((), 2.0)
    assert abs(value() + 0.065) < 1e-9

    shift = {"now": 0.0}
    apply_fn = lambda w, x: flat(x) @ w + shift["now"] * jnp.arange(5.0)[None]
    evaluate = theory.adversarial_evaluation(KEY, apply_fn, IMAGES, LABELS, num_steps=1)
    first = evaluate(WEIGHTS)["loss"]
    shift["now"] = 3.0
    assert abs(float(evaluate(WEIGHTS)["loss"] - first)) > 0.1


def test_predictions_see_the_weights_of_now():
    shift = {"now": 0.0}

    def apply_fn(params, batch_stats, images, train):
        return flat(images) @ params + shift["now"] * jnp.arange(5.0)[None], batch_stats

    predict = training.make_predict(apply_fn, norm="linf", eps=0.1, step_size=0.1, num_steps=1)
    pixels = (IMAGES * 255).astype(jnp.uint8)
    run = lambda: predict(WEIGHTS, {}, KEY, pixels, LABELS, jnp.arange(6)).clean
    assert float((run() == LABELS).mean()) > 0.5
    shift["now"] = 1e4
    assert run().tolist() == [4] * 6


def test_every_kind_of_callable_is_a_model():
    dense = linen.Dense(5)
    variables = dense.init(KEY, flat(IMAGES))
    sequence = linen.Sequential([flat, dense])
    bound = sequence.bind({"params": {"layers_1": variables["params"]}})
    wanted = ATTACKS["pgd"](lambda x: dense.apply(variables, flat(x)))
    partial = jax.tree_util.Partial(lambda v, x: dense.apply(v, flat(x)), variables)
    jitted = jax.jit(lambda x: dense.apply(variables, flat(x)))
    for model in (bound, partial, jitted):
        np.testing.assert_array_equal(ATTACKS["pgd"](model), wanted)


REFUSED = {
    "tuple": (lambda x: (MODEL(x), x), r"logits_fn returns a tuple.*lambda x: logits_fn\(x\)\[0\]"),
    "dict": (lambda x: {"out": MODEL(x)}, r"logits_fn returns a dict.*\['out'\]"),
    "one logit": (lambda x: MODEL(x)[:, :1], "return two"),
    "classes": (lambda x: MODEL(x).argmax(1)[:, None] * jnp.ones((1, 2), int), "return logits"),
    "images": (lambda x: x, r"returns shape \(\d, 4, 4, 1\)"),
    "batch": (lambda x: MODEL(x)[:2], r"shape \(2, 5\)"),
    "none": (None, "logits_fn is a NoneType; pass a function"),
}


@pytest.mark.parametrize("attack", ["pgd", "apgd", "fab", "square", "autoattack"])
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_model_is_one_short_line(attack, name):
    model, message = REFUSED[name]
    if name == "batch" and attack == "autoattack":
        message = "logits_fn"
    with pytest.raises(ValueError, match=message) as caught:
        ATTACKS[attack](model)
    assert len(str(caught.value)) < 200 and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "layer", [nnx.BatchNorm(16, rngs=nnx.Rngs(0)), nnx.Dropout(0.5, rngs=nnx.Rngs(0))]
)
def test_train_mode_is_refused_with_the_remedy(layer):
    with pytest.raises(ValueError, match=r"model\.eval\(\)"):
        ATTACKS["pgd"](lambda x: layer(flat(x))[:, :5])
    layer.eval()
    ATTACKS["pgd"](lambda x: layer(flat(x))[:, :5])


@pytest.mark.parametrize("attack", ["pgd", "apgd", "autoattack"])
def test_channels_first_images_are_refused_in_words(attack):
    images = jnp.full((6, 3, 8, 8), 0.5)
    with pytest.raises(ValueError, match=r"channels first.*transpose\(0, 2, 3, 1\)"):
        if attack == "autoattack":
            attacks.autoattack(KEY, MODEL, images, LABELS, progress=False)
        else:
            options = dict(step_size=0.1, num_steps=1) if attack == "pgd" else {}
            getattr(attacks, attack)(KEY, MODEL, images, LABELS, **THREAT, **options)


def test_images_a_hair_outside_the_box_are_named_with_the_place():
    images = IMAGES.at[2, 1, 3, 0].set(1.0000001)
    with pytest.raises(ValueError, match=r"1\.0000001.*\(2, 1, 3, 0\).*clip\(0, 1\)"):
        images_of_with(images)


def images_of_with(images, **options):
    settings = THREAT | dict(step_size=0.05, num_steps=2) | options
    return attacks.pgd(KEY, MODEL, images, LABELS, **settings)


def test_constant_images_inside_a_traced_function_are_checked_and_attacked():
    step = lambda w: attacks.pgd(
        KEY, lambda x: flat(x) @ w, IMAGES, LABELS, **THREAT, step_size=0.05, num_steps=2
    )
    wanted = step(WEIGHTS)
    np.testing.assert_allclose(jax.jit(step)(WEIGHTS), wanted, atol=1e-6)
    assert jax.eval_shape(step, WEIGHTS).shape == IMAGES.shape
    doubled = IMAGES * 2
    with pytest.raises(ValueError, match="spans"):
        jax.jit(lambda w: w.sum() + images_of_with(doubled).sum())(WEIGHTS)


KEYS = [7, np.int64(7), jax.random.key(7, impl="rbg"), jax.random.key(7, impl="unsafe_rbg")]


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_any_key_gives_results_that_do_not_depend_on_the_cut(key, norm):
    threat = dict(norm=norm, eps=0.5, step_size=0.1, num_steps=2)
    whole = attacks.pgd(key, MODEL, IMAGES, LABELS, **threat)
    halves = [
        attacks.pgd(key, MODEL, IMAGES[part], LABELS[part], **threat, indices=range(6)[part])
        for part in (slice(0, 2), slice(2, 6))
    ]
    np.testing.assert_allclose(whole, jnp.concatenate(halves), atol=1e-6)


@pytest.mark.parametrize("key", [None, "0", -1, 2**32, jnp.zeros(2), jax.random.split(KEY)])
def test_what_is_no_key_is_refused(key):
    with pytest.raises(ValueError, match="^key"):
        attacks.fgsm(key, MODEL, IMAGES, LABELS, **THREAT)


def test_radii_and_steps_as_text_lists_and_one_an_image():
    run = lambda **options: images_of_with(IMAGES, **options)
    np.testing.assert_array_equal(run(eps="8/255"), run(eps=8 / 255))
    np.testing.assert_array_equal(run(eps=np.array([0.1])), run(eps=0.1))
    radii = jnp.array([0.0, 0.1, 0.2, 0.0, 0.05, 0.3])
    for norm in ("linf", "l2", "l1"):
        steps = dict(norm=norm, step_size=radii / 2)
        found = run(eps=radii, **steps)
        for row, radius in enumerate(radii):
            alone = run(eps=float(radius), norm=norm, step_size=float(radius) / 2)
            np.testing.assert_allclose(found[row], alone[row], atol=1e-6)
        np.testing.assert_array_equal(found, run(eps=radii.reshape(6, 1, 1, 1), **steps))
        np.testing.assert_array_equal(found, run(eps=[float(r) for r in radii], **steps))


def test_apgd_takes_one_radius_an_image():
    radii = jnp.array([0.0, 0.1, 0.2, 0.0, 0.05, 0.3])
    for norm in ("linf", "l2", "l1"):
        run = lambda eps, norm=norm: attacks.apgd(
            KEY, MODEL, IMAGES, LABELS, norm=norm, eps=eps, num_steps=8
        )
        found = run(radii).best_images
        for row, radius in enumerate(radii):
            np.testing.assert_allclose(found[row], run(float(radius)).best_images[row], atol=1e-5)


@pytest.mark.parametrize("attack", ["fab", "square", "autoattack"])
def test_one_radius_an_image_is_refused_elsewhere(attack):
    options = dict(progress=False) if attack == "autoattack" else {}
    with pytest.raises(ValueError, match=r"eps has shape \(6,\); pass one number"):
        getattr(attacks, attack)(
            KEY, MODEL, IMAGES, LABELS, norm="linf", eps=jnp.full(6, 0.1), **options
        )


@pytest.mark.parametrize("eps", ["eight", "1/0", [0.1, 0.2], None, jnp.full((6, 4), 0.1)])
def test_what_is_no_radius_is_refused(eps):
    with pytest.raises(ValueError, match="^eps"):
        images_of_with(IMAGES, eps=eps)


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_the_default_radius_is_that_of_linf_only(norm):
    with pytest.raises(ValueError, match=r"needs eps; usual radii"):
        attacks.autoattack(KEY, MODEL, IMAGES, LABELS, norm=norm, progress=False)


def test_rand_with_a_model_that_takes_no_key_is_refused():
    with pytest.raises(ValueError, match=r"lambda images, key"):
        attacks.autoattack(KEY, MODEL, IMAGES, LABELS, version="rand", progress=False)


TARGETED = {
    "cross-entropy": lambda z, t: -losses.cross_entropy(z, t),
    "margin": lambda z, t: -losses.margin(z, t),
}


@pytest.mark.parametrize("name", TARGETED)
def test_a_targeted_loss_with_early_stop_stops_at_the_target(name):
    targets = (LABELS + 1) % 5
    run = lambda stop: attacks.pgd(
        KEY, MODEL, IMAGES, targets, norm="linf", eps=0.4, step_size=0.05, num_steps=20,
        init="zero", loss=TARGETED[name], early_stop=stop,
    )  # fmt: skip
    hit = lambda images: MODEL(images).argmax(1) == targets
    assert hit(run(False)).sum() >= 3
    np.testing.assert_array_equal(hit(run(True)), hit(run(False)))
    moved = lambda images: jnp.abs(images - IMAGES).sum()
    assert moved(run(True)) < moved(run(False))


@pytest.mark.parametrize("attack", ["pgd", "apgd", "fab", "fab_targeted", "square"])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("bad", ["infinite gradient", "nan gradient"])
def test_a_gradient_that_is_not_finite_leaves_images_finite(attack, norm, bad):
    images = IMAGES.at[:, 0, 0, 0].set(0.0)
    root = lambda x: flat(x**0.45) @ WEIGHTS
    if bad == "nan gradient":
        root = lambda x: flat(jnp.where(x > 0, jnp.sqrt(x), 0)) @ WEIGHTS
    labels = root(images).argmax(1).astype(jnp.int32)
    options = dict(step_size=0.1, num_steps=3) if attack == "pgd" else {"num_steps": 3}
    options = dict(num_queries=10) if attack == "square" else options
    run = getattr(attacks, attack)
    result = run(KEY, root, images, labels, norm=norm, eps=0.5, **options)
    for found in (result,) if attack == "pgd" else (result.images, result.best_images):
        assert bool(jnp.isfinite(found).all())
        assert bool((found != images).any()) or attack != "pgd"


def test_images_with_logits_that_are_not_finite_are_not_robust():
    bad = jnp.array([0.0, jnp.nan, 0.0, jnp.inf, 0.0, -jnp.inf])
    model = lambda x: MODEL(x) + jnp.where(flat(x)[:, 0] > 0.5, jnp.nan, 0)[:, None]
    images = IMAGES.at[:, 0, 0, 0].set(jnp.where(jnp.isfinite(bad), 0.1, 0.9))
    labels = MODEL(images).argmax(1).astype(jnp.int32)
    for attack in ("apgd", "fab", "square"):
        options = dict(num_queries=3) if attack == "square" else dict(num_steps=2)
        result = getattr(attacks, attack)(
            KEY, model, images, labels, norm="linf", eps=1e-4, **options
        )
        assert result.success.tolist() == [False, True, False, True, False, True]


def test_models_and_images_on_different_devices_are_one_line():
    first, second = jax.devices()[:2]
    model = jax.tree_util.Partial(lambda w, x: flat(x) @ w, jax.device_put(WEIGHTS, second))
    with pytest.raises(ValueError, match=r"different devices.*device_put"):
        images_of_with_model(model, jax.device_put(IMAGES, first))


def images_of_with_model(model, images):
    return attacks.pgd(KEY, model, images, LABELS, **THREAT, step_size=0.05, num_steps=1)


@pytest.mark.parametrize("explicit", [False, True])
@pytest.mark.parametrize("split", ["weights", "images", "both"])
def test_arrays_over_a_mesh_give_the_images_of_one_device(explicit, split):
    kinds = jax.sharding.AxisType.Explicit if explicit else jax.sharding.AxisType.Auto
    mesh = jax.make_mesh((2,), ("batch",), axis_types=(kinds,))
    place = lambda x, *axes: jax.device_put(
        x, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))
    )
    w = place(WEIGHTS) if split != "images" else WEIGHTS
    images = place(IMAGES, "batch") if split != "weights" else IMAGES
    found = images_of_with_model(lambda x: flat(x) @ w, images)
    np.testing.assert_array_equal(found, images_of_with_model(MODEL, IMAGES))
