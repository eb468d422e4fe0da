"""BatchNorm's statistics on two devices: one for the minibatch, or one for each device's images."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxadv import objectives, optim, training
from jaxadv.augment import augmentation
from tests.helpers import collectives
from tests.helpers.training_cases import ATTACK, KEY, apply_bn, close, equal, init_bn

SIZE, HALVES = 8, (jnp.arange(4), jnp.arange(4, 8))
RATE, DECAY, GAMMA, SCALE = 0.1, 0.01, 0.05, 0.7
MESH = jax.make_mesh((2,), ("batch",), (jax.sharding.AxisType.Auto,))
ROWS, EVERYWHERE = (
    jax.sharding.NamedSharding(MESH, jax.sharding.PartitionSpec(*axes)) for axes in (["batch"], [])
)
OBJECTIVES = {
    "at": objectives.adversarial_cross_entropy(apply_bn, **ATTACK),
    "awp": objectives.adversarial_cross_entropy(apply_bn, **ATTACK, weights_move=True),
    "trades": objectives.trades(apply_bn, eps=0.1, step_size=0.04, num_steps=3),
}
GENTLE = objectives.adversarial_cross_entropy(apply_bn, **ATTACK, attack_bn="eval")


@pytest.fixture(scope="module")
def data():
    images = np.random.default_rng(0).integers(0, 256, (24, 3, 3, 1), dtype=np.uint8)
    data = training.DeviceData(jnp.array(images), jnp.array(np.arange(24) % 4, jnp.int32))
    return jax.device_put(data, EVERYWHERE)


def make_program(method, *, sync=False, **options):
    return training.Program(
        apply_bn,
        OBJECTIVES[method],
        batch_size=SIZE,
        augment=augmentation("reflect_crop_flip"),
        weight_perturbation=(lambda step: GAMMA + 0.0 * step) if method == "awp" else 0.0,
        attack_scale=(lambda step: SCALE + 0.0 * step) if method == "awp" else None,
        sharding=ROWS,
        sync_batch_norm=sync,
        **options,
    )


def make_state(tx):
    return jax.device_put(training.TrainState.create(*init_bn(), tx), EVERYWHERE)


def mean(trees):
    return jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *trees)


@functools.partial(jax.jit, static_argnums=0)
def gradient(method, params, stats, batch):
    """Gradient, statistics, loss and correct images of halves with statistics of their own."""
    images, labels, key = batch
    objective, halves, perturbed = OBJECTIVES[method], [], params
    scale = SCALE if method == "awp" else 1.0
    for rows in HALVES:
        x, y = images[rows], labels[rows]
        adversarial, moved = objective.perturb(
            key, params, stats, x, y, indices=rows, scale=scale
        )
        halves.append((moved, x, adversarial, y))
    if method == "awp":
        ascent = mean([jax.grad(objective.loss, has_aux=True)(params, *half)[0] for half in halves])
        v = optim.awp_perturbation(params, ascent, GAMMA)
        perturbed = optax.tree.add(params, v)
    value_and_grad = jax.value_and_grad(objective.loss, has_aux=True)
    found = [value_and_grad(perturbed, *half) for half in halves]
    grads = mean([grads for _, grads in found])
    if method == "awp":
        grads = optax.tree.add_scale(grads, DECAY, v)
    correct = sum(
        (aux.logits.argmax(1) == half[-1]).sum()
        for ((_, aux), _), half in zip(found, halves, strict=True)
    )
    stats = mean([aux.batch_stats for (_, aux), _ in found])
    return grads, stats, mean([loss for (loss, _), _ in found]), correct


@jax.jit
def forward(params, stats, images):
    passes = [apply_bn(params, stats, images[rows], True) for rows in HALVES]
    return jnp.concatenate([logits for logits, _ in passes]), mean([s for _, s in passes])


def minibatches(program, data, count, key=KEY):
    make = jax.jit(
        lambda data, step: program._feed.minibatches(data, key, jnp.int32(0), count)(step)
    )
    batches = [make(data, jnp.int32(step)) for step in range(count)]
    return [(np.asarray(images), np.asarray(labels), key) for images, labels, key in batches]


@pytest.mark.parametrize("method", OBJECTIVES)
def test_sgd_averages_the_gradients_of_two_halves(data, method):
    program = make_program(method, clean_pass=method == "at")
    tx = training.sgd(RATE, momentum=0.9, weight_decay=DECAY)
    state = make_state(tx)
    (params, stats), opt_state = init_bn(), state.opt_state
    opt_state = jax.tree.map(np.asarray, opt_state)
    expected = {"loss": 0.0, "robust": 0, "clean": 0}
    for batch in minibatches(program, data, 2):
        grads, stats, loss, correct = gradient(method, params, stats, batch)
        updates, opt_state = tx.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        expected["loss"] += SIZE * float(loss)
        expected["robust"] += int(correct)
        if method == "at":
            logits, stats = forward(params, stats, batch[0])
            expected["clean"] += int((logits.argmax(1) == batch[1]).sum())
    state, metrics = program.sgd_steps(tx, perturbed_decay=DECAY)(state, data, KEY, 2)
    close((state.params, state.batch_stats), (params, stats), rtol=2e-4, atol=2e-5)
    assert float(metrics["loss"]) == pytest.approx(expected["loss"], rel=1e-4)
    assert int(metrics["robust"]) == expected["robust"] and int(metrics["count"]) == 2 * SIZE
    assert method != "at" or int(metrics["clean"]) == expected["clean"]


def test_entropy_sgd_averages_the_gradients_of_two_halves(data):
    program, options = make_program("at"), dict(key=KEY, n_in=2, noise=0.01)
    tx = optim.entropy_sgd(RATE, **options)
    state = program.entropy_step(tx, 2)(make_state(tx), data, jax.random.key(1))[0]
    (params, stats), by_hand = init_bn(), optim.entropy_sgd_stepwise(RATE, **options)
    opt_state = by_hand.init(params)
    for batch in minibatches(program, data, 2, jax.random.key(1)):
        grads, stats, _, _ = gradient("at", params, stats, batch)
        updates, opt_state = by_hand.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
    close((state.params, state.batch_stats), (params, stats), rtol=2e-4, atol=2e-5)


def test_refreshed_statistics_are_the_mean_over_the_devices(data):
    program = make_program("at")
    state = make_state(training.sgd(RATE))
    found = program.refresh_stats(2, GENTLE.perturb)(state, data, KEY)
    params, stats = init_bn()
    batches = minibatches(program, data, 2, jax.random.fold_in(KEY, 3))
    for index, (images, labels, key) in enumerate(batches):
        if index % 2 == 0:
            images, _ = GENTLE.perturb(key, params, stats, images, labels)
        _, stats = forward(params, stats, images)
    close(found, stats, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", ["at", "trades"])
def test_noise_is_that_of_one_device(method):
    """Without BatchNorm in train mode, nothing depends on how images are spread."""
    images, labels = jnp.full((SIZE, 3, 3, 1), 0.5), jnp.arange(SIZE) % 4
    apply_fn = lambda params, stats, x, train: apply_bn(params, stats, x, False)
    make = {"at": objectives.adversarial_cross_entropy, "trades": objectives.trades}[method]
    objective = make(apply_fn, eps=0.1, step_size=0.04, num_steps=0)
    whole, _ = objective.perturb(KEY, *init_bn(), images, labels)
    halves = [
        objective.perturb(KEY, *init_bn(), images[r], labels[r], indices=r)[0] for r in HALVES
    ]
    equal(whole, jnp.concatenate(halves))
    assert len(np.unique(np.asarray(whole)[:, 0, 0, 0])) == SIZE


@pytest.mark.parametrize("sync", [True, False])
@pytest.mark.parametrize("method", OBJECTIVES)
def test_where_the_devices_communicate(data, method, sync):
    """Depth 1 is the loop of minibatches, depth 2 that of the attack's steps."""
    program, tx = make_program(method, sync=sync, clean_pass=True), training.sgd(RATE)
    state = make_state(tx)
    text = program.sgd_steps(tx).lower(state, data, KEY, 2).compile().as_text()
    found = collectives.by_loop_depth(text)
    attacks_in_train_mode = method != "trades"
    assert (2 in found) == (sync and attacks_in_train_mode)
    if not sync:
        sizes = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))
        gradients, statistics = sizes(state.params), sizes(state.batch_stats)
        # The clean pass's statistics, and the gradients with statistics and loss. AWP also averages
        # the gradient that it perturbs the weights with. Smaller ones count correct images.
        expected = [statistics, gradients + statistics + 1]
        expected += [gradients] if method == "awp" else []
        assert sorted(size for size in found.pop(1) if size > 2) == sorted(expected)
        assert not found


def test_one_outer_step_communicates_once_per_gradient(data):
    program, tx = make_program("at"), optim.entropy_sgd(RATE, key=KEY, n_in=3)
    state = make_state(tx)
    text = program.entropy_step(tx, 3).lower(state, data, KEY).compile().as_text()
    [big] = [size for size in collectives.by_loop_depth(text)[1] if size > 2]
    assert big > sum(leaf.size for leaf in jax.tree.leaves(state.params))


def test_on_one_device_nothing_changes(data):
    data, tx, results = (
        jax.device_put(jax.device_get(data), jax.devices()[0]),
        training.sgd(RATE),
        [],
    )
    for sync in (True, False):
        program = training.Program(
            apply_bn, OBJECTIVES["at"], batch_size=SIZE, sync_batch_norm=sync
        )
        state = training.TrainState.create(*init_bn(), tx)
        results.append(program.sgd_steps(tx)(state, data, KEY, 1))
    equal(*results)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(batch_size=7), "batch_size=7 is not a multiple of 2 devices, which sync_batch_norm"),
        (dict(sharding=EVERYWHERE), "does not split the first axis over one mesh axis"),
    ],
)
def test_what_cannot_be_split_is_an_error(options, message):
    options = dict(batch_size=8, sharding=ROWS, sync_batch_norm=False) | options
    with pytest.raises(ValueError, match=message):
        training.Program(apply_bn, OBJECTIVES["at"], **options)
