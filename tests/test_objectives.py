"""Objectives: adversarial cross-entropy by plain steps, TRADES against NumPy float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv import attacks, balls, losses, objectives, optim
from tests.helpers.training_cases import (
    ATTACK,
    KEY,
    START,
    apply_bn,
    apply_linear,
    close,
    equal,
    init_bn,
)
from tests.references import trades as reference


def test_objective_is_cross_entropy_at_pgd_images():
    objective = objectives.adversarial_cross_entropy(apply_linear, **ATTACK)
    params = 10 * START
    images, labels = jnp.full((5, 3, 3, 1), 0.5), jnp.arange(5) % 4
    adversarial, stats = objective.perturb(KEY, params, {}, images, labels)
    logits_fn = lambda x: apply_linear(params, {}, x, True)[0]
    expected = attacks.pgd(KEY, logits_fn, images, labels, **ATTACK)
    np.testing.assert_allclose(adversarial, expected, atol=1e-7)
    assert stats == {}
    value, aux = objective.loss(params, {}, images, adversarial, labels)
    by_hand = losses.cross_entropy(logits_fn(adversarial), labels).mean()
    assert value == pytest.approx(float(by_hand), rel=1e-6)
    np.testing.assert_allclose(aux.logits, logits_fn(adversarial), rtol=1e-6)


def count_passes(**options):
    """Running statistics after a minibatch, and those of a plain list of train-mode passes."""
    params, stats = init_bn()
    objective = objectives.adversarial_cross_entropy(apply_bn, **ATTACK | options)
    rng = np.random.default_rng(2)
    images = jnp.array(rng.uniform(size=(6, 3, 3, 1)), jnp.float32)
    labels = jnp.arange(6) % 4
    adversarial, after_attack = objective.perturb(KEY, params, stats, images, labels)
    (_, aux), _ = jax.value_and_grad(objective.loss, has_aux=True)(
        params, after_attack, images, adversarial, labels
    )
    train_mode = options.get("attack_bn", "train") == "train"
    logits_fn = lambda x: apply_bn(params, stats, x, train_mode)[0]
    iterates = [
        attacks.pgd(KEY, logits_fn, images, labels, **ATTACK | dict(num_steps=n)) for n in range(4)
    ]
    return stats, after_attack, aux.batch_stats, params, iterates


def forward_all(stats, params, batches):
    for images in batches:
        stats = apply_bn(params, stats, images, True)[1]
    return stats


def test_train_mode_attack_moves_the_statistics_with_every_pass():
    """Three attack passes, the selection pass and the pass of the loss, as in the AWP code."""
    stats, after_attack, final, params, iterates = count_passes()
    close(after_attack, forward_all(stats, params, iterates[:3]), rtol=1e-4, atol=1e-6)
    expected = forward_all(stats, params, [*iterates, iterates[3]])
    close(final, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "options", [dict(attack_updates_stats=False), dict(attack_bn="eval")], ids=str
)
def test_otherwise_only_the_loss_moves_the_statistics(options):
    stats, after_attack, final, params, iterates = count_passes(**options)
    equal(after_attack, stats)
    close(final, forward_all(stats, params, iterates[3:]), rtol=1e-4, atol=1e-6)


def test_under_weight_perturbation_the_selection_pass_is_at_the_attacked_weights():
    """Four passes at theta by the attack; that of the loss is at theta + v."""
    params, stats = init_bn()
    objective = objectives.adversarial_cross_entropy(apply_bn, **ATTACK, weights_move=True)
    images = jnp.array(np.random.default_rng(2).uniform(size=(6, 3, 3, 1)), jnp.float32)
    labels = jnp.arange(6) % 4
    adversarial, after_attack = objective.perturb(KEY, params, stats, images, labels)
    logits_fn = lambda x: apply_bn(params, stats, x, True)[0]
    iterates = [
        attacks.pgd(KEY, logits_fn, images, labels, **ATTACK | dict(num_steps=n)) for n in range(4)
    ]
    expected = forward_all(stats, params, iterates)
    close(after_attack, expected, rtol=1e-4, atol=1e-6)
    (_, aux), _ = optim.awp_value_and_grad(objective.loss, 0.5, has_aux=True)(
        params, after_attack, images, adversarial, labels
    )
    grads = jax.grad(lambda p: objective.loss(p, stats, images, adversarial, labels)[0])(params)
    v = optim.awp_perturbation(params, grads, 0.5)
    moved = jax.tree.map(jnp.add, params, v)
    close(aux.batch_stats, apply_bn(moved, expected, adversarial, True)[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(norm="linfty"), "did you mean 'linf'"),
        (dict(eps=8.0), r"8/255"),
        (dict(eps=-1.0), "eps=-1.0"),
        (dict(num_steps=-1), "num_steps=-1"),
        (dict(attack_bn="training"), "did you mean 'train'"),
    ],
)
def test_objective_rejects_what_makes_no_sense(options, message):
    with pytest.raises(ValueError, match=message):
        objectives.adversarial_cross_entropy(apply_linear, **ATTACK | options)


# --- TRADES --------------------------------------------------------------------------------------

RNG = np.random.default_rng(3)
INSIDE = RNG.uniform(0.2, 0.8, size=(6, 9))
AT_THE_EDGE = np.where(RNG.uniform(size=(6, 9)) < 0.5, RNG.integers(0, 2, (6, 9)), INSIDE)
LABELS = np.arange(6) % 4
PRESETS = {
    "paper": dict(norm="linf", eps=0.031, step_size=0.003, num_steps=10),
    "awp": dict(norm="linf", eps=8 / 255, step_size=2 / 255, num_steps=10),
    "l2": dict(norm="l2", eps=128 / 255, step_size=2 * 128 / 255 / 10, num_steps=10),
}


def numpy_variables():
    """Parameters and statistics in float64 that are not the symmetric ones of a fresh model."""
    rng = np.random.default_rng(4)
    params, stats = jax.tree.map(lambda x: np.asarray(x, np.float64), init_bn())
    params = jax.tree.map(lambda x: x + 0.5 * rng.normal(size=x.shape), params)
    stats = {"mean": rng.normal(size=8), "var": rng.uniform(0.5, 2, size=8)}
    return params, {"BatchNorm_0": stats}


def as_images(x):
    return jnp.array(x.reshape(-1, 3, 3, 1))


def trades_case(options, x):
    """The attack of jaxadv, and the arguments with which NumPy does the same."""
    params, stats = numpy_variables()

    def run(x, **changed):
        objective = objectives.trades(apply_bn, **options | changed)
        found, after = objective.perturb(KEY, params, stats, as_images(x), LABELS)
        equal(after, stats)
        return np.asarray(found).reshape(x.shape)

    noise = run(INSIDE, num_steps=0) - INSIDE
    return run(x), (params, stats["BatchNorm_0"], x, noise)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("x", [INSIDE, AT_THE_EDGE], ids=["inside", "at the edge"])
def test_the_attack_of_trades_is_that_of_the_reference(x64, preset, x):
    found, arguments = trades_case(PRESETS[preset], x)
    expected = reference.attack(*arguments, **PRESETS[preset])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
    size = np.linalg.norm(found - x, axis=1, ord=2 if preset == "l2" else np.inf)
    assert (size <= PRESETS[preset]["eps"] + 1e-12).all() and size.max() > 0.9 * 0.03
    assert found.min() >= 0 and found.max() <= 1


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("method", ["adversarial_cross_entropy", "trades"])
def test_the_scale_multiplies_radius_and_step(method, norm):
    """One step of 0.04 stays in a ball of 0.1, three end on it: the one tells the step's size."""
    images, labels = jnp.full((5, 3, 3, 1), 0.5), jnp.arange(5) % 4

    def attacked(options):
        perturb = getattr(objectives, method)(apply_linear, **options).perturb
        return jax.jit(lambda scale: perturb(KEY, START, {}, images, labels, scale=scale)[0])

    for num_steps in (1, 3):
        options = ATTACK | {"norm": norm, "num_steps": num_steps}
        found, half = attacked(options), attacked(options | {"eps": 0.05, "step_size": 0.02})
        close(found(0.5), half(1.0), atol=1e-6)
        equal(found(0.0), images)


@pytest.mark.parametrize("scale", [1.0, 1e-2, 1e-4, 1e-5])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_tiny_gradients_do_not_weaken_the_attack_of_trades(x64, norm, scale):
    linear = lambda params, stats, x, train: (x.reshape(x.shape[0], -1) @ params, stats)
    params = scale * np.random.default_rng(7).normal(size=(9, 4))  # |gradient| about 1e-3 scale^2
    options = PRESETS["l2" if norm == "l2" else "paper"]
    objective = objectives.trades(linear, **options)
    found, _ = objective.perturb(KEY, params, {}, as_images(INSIDE), LABELS)
    size = balls.norm_of(found - as_images(INSIDE), norm)
    np.testing.assert_allclose(size, options["eps"], rtol=0.02)


def test_the_start_noise_of_trades(x64):
    _, (_, _, _, noise) = trades_case(PRESETS["paper"], INSIDE)
    assert 0.0005 < noise.std() < 0.0015 and len(np.unique(noise)) == noise.size
    _, (_, _, _, larger) = trades_case(PRESETS["paper"] | dict(start_noise=0.01), INSIDE)
    np.testing.assert_allclose(larger, 10 * noise, atol=1e-12)


@pytest.mark.parametrize("beta", [6.0, 1.0])
def test_the_loss_of_trades_its_gradient_and_statistics(x64, beta):
    """The gradient by central differences of the NumPy loss: both arguments of KL count."""
    params, stats = numpy_variables()
    x_adv = np.clip(INSIDE + RNG.uniform(-0.1, 0.1, INSIDE.shape), 0, 1)
    objective = objectives.trades(apply_bn, beta=beta)
    (value, aux), grads = jax.value_and_grad(objective.loss, has_aux=True)(
        jax.tree.map(jnp.asarray, params), stats, as_images(INSIDE), as_images(x_adv), LABELS
    )
    evaluate = lambda p: reference.loss(p, stats["BatchNorm_0"], INSIDE, x_adv, LABELS, beta)
    expected, moved = evaluate(params)
    assert float(value) == pytest.approx(expected, rel=1e-10)
    close(aux.batch_stats["BatchNorm_0"], moved, rtol=1e-10)
    z_adv, _ = reference.train_mode(params, x_adv, stats["BatchNorm_0"])
    np.testing.assert_allclose(aux.logits, z_adv, rtol=1e-9)
    for layer, leaves in params.items():
        for name, leaf in leaves.items():
            for index in list(np.ndindex(leaf.shape))[:: max(1, leaf.size // 5)]:
                old, h = leaf[index], 1e-6
                leaf[index] = old + h
                above = evaluate(params)[0]
                leaf[index] = old - h
                slope = (above - evaluate(params)[0]) / (2 * h)
                leaf[index] = old
                assert float(grads[layer][name][index]) == pytest.approx(slope, abs=1e-7)


def test_the_statistics_of_trades_in_the_original_order(x64):
    params, stats = numpy_variables()
    objective = objectives.trades(apply_bn, beta=6.0, bn_order="clean_first")
    images, x_adv = as_images(INSIDE), as_images(AT_THE_EDGE)
    value, aux = objective.loss(params, stats, images, x_adv, LABELS)
    arguments = (params, stats["BatchNorm_0"], INSIDE, AT_THE_EDGE, LABELS, 6.0)
    expected, moved = reference.loss(*arguments, order="clean_first")
    assert float(value) == pytest.approx(expected, rel=1e-10)
    close(aux.batch_stats["BatchNorm_0"], moved, rtol=1e-10)
    other = reference.loss(*arguments)[1]
    assert np.abs(moved["mean"] - other["mean"]).max() > 1e-3


def test_trades_without_consistency_is_cross_entropy_on_clean_images(x64):
    params, stats = numpy_variables()
    objective = objectives.trades(apply_bn, beta=0.0)
    value, _ = objective.loss(params, stats, as_images(INSIDE), as_images(AT_THE_EDGE), LABELS)
    logits, _ = apply_bn(params, stats, as_images(INSIDE), True)
    expected = losses.cross_entropy(logits, LABELS).mean()
    assert float(value) == pytest.approx(float(expected), rel=1e-12)


def test_an_attack_of_radius_0_changes_nothing():
    params, stats = init_bn()
    images = as_images(INSIDE).astype(jnp.float32)
    for norm in ("linf", "l2"):
        objective = objectives.trades(apply_bn, norm=norm, eps=0.0, step_size=0.1)
        adversarial, _ = objective.perturb(KEY, params, stats, images, LABELS)
        np.testing.assert_allclose(adversarial, images, atol=1e-7)


def test_the_start_of_an_image_does_not_depend_on_its_neighbours():
    params, stats = init_bn()
    objective = objectives.trades(apply_bn)
    images = as_images(INSIDE).astype(jnp.float32)
    whole, _ = objective.perturb(KEY, params, stats, images, LABELS)
    part, _ = objective.perturb(KEY, params, stats, images[:2], LABELS[:2])
    np.testing.assert_allclose(part, whole[:2], atol=1e-7)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(norm="l1"), "norm='l1' is not one of 'linf', 'l2'"),
        (dict(eps=8.0), "8/255"),
        (dict(beta=-1.0), "beta=-1.0 must be a finite number >= 0"),
        (dict(start_noise=float("nan")), "start_noise=nan must be"),
        (dict(step_size=-1.0), "step_size=-1.0 must be"),
        (dict(num_steps=1.5), "num_steps=1.5 must be an integer"),
    ],
)
def test_trades_rejects_what_makes_no_sense(options, message):
    with pytest.raises(ValueError, match=message):
        objectives.trades(apply_linear, **options)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_trades_trains_a_model_that_rules_classes_out(norm):
    """As the model of the other classes alone, and finite."""
    allowed = jnp.array([[0.0, 0.0, -jnp.inf, 0.0]])

    def masked(params, batch_stats, images, train):
        return images.reshape(len(images), -1) @ params + allowed, batch_stats

    def small(params, batch_stats, images, train):
        return images.reshape(len(images), -1) @ params[:, jnp.array([0, 1, 3])], batch_stats

    images = jax.random.uniform(jax.random.key(0), (4, 2, 2, 1))
    params = jax.random.normal(jax.random.key(1), (4, 4))
    results = []
    for apply_fn, labels in ((masked, jnp.array([0, 1, 3, 3])), (small, jnp.array([0, 1, 2, 2]))):
        objective = objectives.trades(apply_fn, norm=norm, eps=0.1, step_size=0.02)
        adversarial, _ = objective.perturb(jax.random.key(2), params, {}, images, labels)
        loss = lambda p, o=objective, a=adversarial, y=labels: o.loss(p, {}, images, a, y)[0]
        results.append((adversarial, *jax.value_and_grad(loss)(params)))
    for got, expected in zip(*results, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
