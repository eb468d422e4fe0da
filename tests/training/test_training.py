"""Minibatches, compiled steps and prediction against plain step-by-step code."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxadv import attacks, objectives, optim, training
from jaxadv.augment import augmentation, random_crop, random_flip
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


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (22, 3, 3, 1), dtype=np.uint8)
    return training.DeviceData(jnp.array(images), jnp.array(np.arange(22) % 4, jnp.int32))


@pytest.fixture(scope="module")
def bn_variables():
    return init_bn()


def linear_program(batch_size=8, **options):
    objective = objectives.adversarial_cross_entropy(apply_linear, **ATTACK)
    return training.Program(apply_linear, objective, batch_size=batch_size, **options)


def bn_program(batch_size=8, clean_pass=False, attack_scale=None, **options):
    objective = objectives.adversarial_cross_entropy(apply_bn, **ATTACK | options)
    return training.Program(
        apply_bn,
        objective,
        batch_size=batch_size,
        clean_pass=clean_pass,
        attack_scale=attack_scale,
    )


# --- minibatches ---------------------------------------------------------------------------------


def all_minibatches(program, data, key, first, count):
    state = training.TrainState(jnp.int32(first), START, {}, ())
    minibatch = program._feed.minibatches(data, key, state, count)
    return [minibatch(first + i) for i in range(count)]


def test_an_epoch_sees_every_image_and_fills_up_from_its_start(data):
    program = linear_program()
    names = np.asarray(data.images).reshape(22, -1)
    seen = []
    for images, labels, _ in all_minibatches(program, data, KEY, 0, 6):
        rows = [
            np.flatnonzero((names == row).all(1))[0]
            for row in np.rint(255 * np.asarray(images)).reshape(8, -1)
        ]
        np.testing.assert_array_equal(labels, data.labels[np.array(rows)])
        seen.append(rows)
    for epoch in (np.concatenate(seen[:3]), np.concatenate(seen[3:])):
        assert sorted(epoch[:22]) == list(range(22))
        np.testing.assert_array_equal(epoch[22:], epoch[:2])
    assert seen[0] != seen[3]


def test_a_minibatch_depends_on_key_and_counter_only(data):
    program = linear_program(augment=augmentation("reflect_crop_flip"))
    from_start = all_minibatches(program, data, KEY, 0, 8)
    from_middle = all_minibatches(program, data, KEY, 5, 3)
    for (images, labels, key), (images2, labels2, key2) in zip(
        from_start[5:], from_middle, strict=True
    ):
        np.testing.assert_array_equal(images, images2)
        np.testing.assert_array_equal(labels, labels2)
        assert (jax.random.key_data(key) == jax.random.key_data(key2)).all()
    keys = {tuple(jax.random.key_data(key).tolist()) for _, _, key in from_start}
    assert len(keys) == 8
    other = all_minibatches(program, data, jax.random.key(1), 0, 1)
    assert not np.array_equal(other[0][0], from_start[0][0])


def test_batch_larger_than_the_data_set_is_an_error(data):
    with pytest.raises(ValueError, match=r"batch_size=23 exceeds the 22 training images"):
        linear_program(batch_size=23).batches_per_epoch(22)


# --- steps ---------------------------------------------------------------------------------------


def test_more_than_an_epoch_a_call_is_refused(data):
    program = linear_program(phases=[training.Phase(9, lambda first, n_in: training.sgd(0.1))])
    state = training.TrainState.create(START, {}, program)
    with pytest.raises(ValueError, match="num_steps=4 is more than an epoch of 3 minibatches"):
        program.advance(state, data, KEY, 4)
    state, _ = program.advance(state, data, KEY, 3)
    assert int(state.step) == 3


def test_sgd_steps_are_torch_sgd_on_the_minibatches(data):
    """Against NumPy: b = m b + (g + wd w), w -= lr b, while the radius of the attack grows."""
    program = linear_program(attack_scale=optax.linear_schedule(0.0, 1.0, 4))
    tx = training.sgd(lambda t: 0.5 / (t + 1), momentum=0.9, weight_decay=0.01)
    start = START
    state = training.TrainState.create(start, {}, tx)
    step = program.sgd_steps(tx)
    state, metrics = step(state, data, KEY, 5 - 2)
    state, more = step(state, data, KEY, 2)
    assert step._cache_size() == 1
    w, buffer = np.array(start), 0
    losses_seen, correct = [], 0
    for t, (images, labels, key) in enumerate(all_minibatches(program, data, KEY, 0, 5)):
        adversarial, _ = program.objective.perturb(
            key, jnp.array(w), {}, images, labels, scale=min(t / 4, 1.0)
        )
        logits = np.asarray(adversarial).reshape(8, -1) @ w
        p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        losses_seen.append(-np.log(p[np.arange(8), labels]).mean())
        correct += (logits.argmax(1) == np.asarray(labels)).sum()
        g = np.asarray(adversarial).reshape(8, -1).T @ (p - np.eye(4)[labels]) / 8
        buffer = 0.9 * buffer + g + 0.01 * w
        w = w - 0.5 / (t + 1) * buffer
    np.testing.assert_allclose(state.params, w, rtol=1e-4, atol=1e-6)
    assert int(state.step) == 5
    assert float(metrics["loss"] + more["loss"]) == pytest.approx(8 * sum(losses_seen), rel=1e-4)
    assert int(metrics["robust"] + more["robust"]) == correct
    assert int(metrics["count"] + more["count"]) == 40
    assert int(metrics["bad_step"]) == training.NEVER


def test_calls_of_any_length_give_the_same_bits(data, bn_variables):
    program = bn_program(clean_pass=True)
    tx = training.sgd(0.1)
    step = program.sgd_steps(tx)

    def run(*lengths):
        state = training.TrainState.create(*bn_variables, tx)
        for length in lengths:
            state, _ = step(state, data, KEY, length)
        return state

    whole = run(3, 3)
    equal(run(1, 2, 3), whole)
    equal(run(3, 1, 1, 1), whole)
    assert step._cache_size() == 1


def test_clean_pass_comes_after_the_update(data, bn_variables):
    params, stats = bn_variables
    tx = training.sgd(0.3)
    state, metrics = bn_program(clean_pass=True).sgd_steps(tx)(
        training.TrainState.create(params, stats, tx), data, KEY, 1
    )
    plain, _ = bn_program().sgd_steps(tx)(
        training.TrainState.create(params, stats, tx), data, KEY, 1
    )
    close(state.params, plain.params, rtol=1e-6)
    images, labels, _ = all_minibatches(bn_program(), data, KEY, 0, 1)[0]
    logits, expected = apply_bn(plain.params, plain.batch_stats, images, True)
    close(state.batch_stats, expected, rtol=1e-5)
    assert int(metrics["clean"]) == int((logits.argmax(1) == labels).sum())


def test_the_state_is_donated_but_the_arguments_of_create_survive(data, bn_variables):
    tx = training.sgd(0.1)
    state = training.TrainState.create(*bn_variables, tx)
    new, _ = bn_program().sgd_steps(tx)(state, data, KEY, 1)
    leaf = jax.tree.leaves(state.params)[0]
    assert leaf.is_deleted()
    assert not any(x.is_deleted() for x in jax.tree.leaves((bn_variables, data, new)))


def test_non_finite_loss_names_the_first_minibatch(data):
    tx = training.sgd(lambda t: jnp.where(t == 1, jnp.inf, 0.1))
    state = training.TrainState.create(jnp.ones((9, 4)), {}, tx)
    _, metrics = linear_program().sgd_steps(tx)(state, data, KEY, 3)
    assert int(metrics["bad_step"]) == 2


def entropy(n_in, **options):
    return optim.entropy_sgd(0.4, key=jax.random.key(9), n_in=n_in, noise=1e-2, **options)


@pytest.mark.parametrize("second_order", [False, True])
def test_entropy_step_is_the_optimizer_on_the_same_minibatches(data, bn_variables, second_order):
    """Against the optimizer fed by hand, minibatch by minibatch outside any compiled step."""
    params, stats = bn_variables
    scale = lambda step: jnp.minimum(step / 6.0, 1.0)  # grows within chains
    program, tx = bn_program(attack_scale=scale), entropy(4, second_order=second_order)
    state = training.TrainState.create(params, stats, tx)
    step = program.entropy_step(tx, 4)
    for _ in range(2):
        state, metrics = step(state, data, KEY)
    by_hand = optim.entropy_sgd_stepwise(
        0.4, key=jax.random.key(9), n_in=4, noise=1e-2, second_order=second_order
    )
    fast, opt_state = params, by_hand.init(params)
    for t, (images, labels, key) in enumerate(all_minibatches(program, data, KEY, 0, 8)):
        adversarial, stats = program.objective.perturb(
            key, fast, stats, images, labels, scale=scale(t)
        )
        grads, aux = jax.grad(program.objective.loss, has_aux=True)(
            fast, stats, images, adversarial, labels
        )
        stats = aux.batch_stats
        updates, opt_state = by_hand.update(grads, opt_state, fast)
        fast = optax.apply_updates(fast, updates)
    close(state.params, optim.slow_params(opt_state, fast), rtol=1e-3, atol=1e-5)
    close(state.batch_stats, stats, rtol=1e-3, atol=1e-5)
    assert int(state.step) == 8 and int(metrics["count"]) == 32
    assert step._cache_size() == 1


def test_the_extra_minibatch_is_spent_first(data):
    program, tx = linear_program(), entropy(2, preset="ucla_exact")
    start = START
    state = training.TrainState.create(start, {}, tx)
    state, _ = program.entropy_step(tx, 2, extra_minibatch=True)(state, data, KEY)
    assert int(state.step) == 3
    images, labels, keys = zip(*all_minibatches(program, data, KEY, 0, 3), strict=True)
    images, labels = jnp.stack(images), jnp.stack(labels)
    keys = jnp.stack([jax.random.key_data(key) for key in keys])

    def grad_fn(params, index, carry):
        key = jax.random.wrap_key_data(keys[index])
        x, y = images[index], labels[index]
        adversarial, _ = program.objective.perturb(key, params, {}, x, y)
        loss = lambda p: program.objective.loss(p, {}, x, adversarial, y)[0]
        return jax.grad(loss)(params), carry

    first, _ = grad_fn(start, 0, None)
    updates, _ = tx.update(first, tx.init(start), start, grad_fn=grad_fn, batches=jnp.arange(1, 3))
    np.testing.assert_allclose(state.params, start + updates, rtol=1e-4, atol=1e-6)


def test_weight_perturbation_from_a_step_on(data, bn_variables):
    """Two plain steps, then two of AWP with decay at the perturbed weights, against plain code.

    The radius of the attack grows meanwhile.
    """
    decay, params, stats = 0.05, *bn_variables
    tx = training.sgd(0.2, weight_decay=decay)
    objective = objectives.adversarial_cross_entropy(apply_bn, **ATTACK, weights_move=True)
    program = training.Program(
        apply_bn,
        objective,
        batch_size=8,
        weight_perturbation=lambda step: jnp.where(step < 2, 0.0, 0.3),
        attack_scale=optax.linear_schedule(0.0, 1.0, 2),
    )
    state = training.TrainState.create(params, stats, tx)
    step, found = program.sgd_steps(tx, perturbed_decay=decay), 0
    for count in (3, 1):  # an epoch, and the first minibatch of the next
        state, metrics = step(state, data, KEY, count)
        found += int(metrics["robust"])
    opt_state, correct = tx.init(params), 0
    for t, (images, labels, key) in enumerate(all_minibatches(program, data, KEY, 0, 4)):
        scale = min(t / 2, 1.0)
        adversarial, stats = objective.perturb(key, params, stats, images, labels, scale=scale)
        gradient = optim.awp_value_and_grad(
            objective.loss, 0.0 if t < 2 else 0.3, has_aux=True, weight_decay=decay
        )
        (_, aux), grads = gradient(params, stats, images, adversarial, labels)
        stats = aux.batch_stats
        correct += int((aux.logits.argmax(1) == labels).sum())
        updates, opt_state = tx.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
    close(state.params, params, rtol=1e-3, atol=1e-5)
    close(state.batch_stats, stats, rtol=1e-3, atol=1e-5)
    assert found == correct


def test_statistics_are_refreshed_with_the_attack_of_their_minibatch(data, bn_variables):
    """While the radius grows, that of the minibatch at which they are refreshed."""
    params, stats = bn_variables

    def refreshed(factor=1.0, attack_scale=None):
        attack = ATTACK | {name: factor * ATTACK[name] for name in ("eps", "step_size")}
        gentle = objectives.adversarial_cross_entropy(apply_bn, **attack, attack_bn="eval")
        state = training.TrainState(jnp.int32(2), params, stats, ())
        return bn_program(attack_scale=attack_scale).refresh_stats(3, gentle.perturb)(
            state, data, KEY
        )

    close(refreshed(attack_scale=lambda step: step / 4.0), refreshed(0.5), atol=1e-6)


def test_refreshed_statistics_belong_to_the_slow_weights(data, bn_variables):
    params, stats = bn_variables
    program, tx = bn_program(), training.sgd(0.1)
    gentle = objectives.adversarial_cross_entropy(apply_bn, **ATTACK, attack_bn="eval")
    refresh = program.refresh_stats(60, gentle.perturb)
    state = training.TrainState.create(params, stats, tx)
    refreshed = refresh(state, data, KEY)
    far = state.replace(batch_stats=jax.tree.map(lambda s: s + 100.0, stats))
    again = refresh(far, data, KEY)
    close(refreshed["BatchNorm_0"]["mean"], again["BatchNorm_0"]["mean"], atol=0.4)
    kernel, bias = params["Dense_0"]["kernel"], params["Dense_0"]["bias"]
    inputs = training.to_float(data.images).reshape(22, -1) @ kernel + bias[None]
    np.testing.assert_allclose(refreshed["BatchNorm_0"]["mean"], inputs.mean(0), atol=0.12)
    assert int(state.step) == 0


def phased_program():
    phases = [
        training.Phase(3, lambda first, n_in: training.sgd(0.1)),
        training.Phase(7, lambda first, n_in: entropy(n_in), n_in=3),  # two chains: to 9
        training.Phase(10, lambda first, n_in: training.sgd(lambda t: 0.01 * (first + t))),
        training.Phase(11, lambda first, n_in: entropy(n_in), n_in=2),  # the run ends inside
    ]
    return linear_program(phases=phases)


def test_phases_follow_each_other_in_whole_updates():
    program = phased_program()
    assert [(p.first, p.end) for p in program.phases] == [(0, 3), (3, 9), (9, 10), (10, 11)]
    assert [program.phase_at(step).n_in for step in (0, 2, 3, 8, 9, 10, 99)] == [
        0,
        0,
        3,
        3,
        0,
        2,
        2,
    ]
    lengths = {0: 3, 1: 2, 3: 3, 6: 3, 9: 1, 10: 1, 11: 0}
    assert {step: program.call_length(step, left=8) for step in lengths} == lengths
    assert program.call_length(0, left=8, at_most=2) == 2
    assert program.call_length(3, left=8, at_most=2) == 3  # a chain is not divided
    assert program.call_length(3, left=2) == 0  # and waits for the next epoch


def test_a_phase_that_the_chain_before_it_covers_is_left_out():
    tx = lambda first, n_in: training.sgd(0.1)
    phases = [training.Phase(4, tx, n_in=5), training.Phase(5, tx), training.Phase(7, tx)]
    found = linear_program(phases=phases).phases
    assert [(p.first, p.end) for p in found] == [(0, 5), (5, 7)]


def test_a_program_advances_through_its_phases(data):
    """Against the compiled steps by hand; another program goes on where the first one stopped."""
    program, step = phased_program(), 0
    state = training.TrainState.create(START, {}, program)
    while count := program.call_length(step, left=11 - step):
        if step == 6:
            program = phased_program()
        state, metrics = program.advance(state, data, KEY, count)
        assert int(metrics["count"]) == 8 * count
        step += count
    assert int(state.step) == 11 and len(state.opt_state) == 4
    hand = linear_program()
    expected = training.TrainState.create(START, {}, training.sgd(0.1))
    expected, _ = hand.sgd_steps(training.sgd(0.1))(expected, data, KEY, 3)
    tx = entropy(3)
    expected = expected.replace(opt_state=tx.init(expected.params))
    for _ in range(2):
        expected, _ = hand.entropy_step(tx, 3)(expected, data, KEY)
    tx = training.sgd(0.09)
    expected = expected.replace(opt_state=tx.init(expected.params))
    expected, _ = hand.sgd_steps(tx)(expected, data, KEY, 1)
    tx = entropy(1)
    expected = expected.replace(opt_state=tx.init(expected.params))
    expected, _ = hand.entropy_step(tx, 1)(expected, data, KEY)
    close(state.params, expected.params, rtol=1e-4, atol=1e-6)


def test_what_is_not_whole_updates_is_refused(data):
    program = phased_program()
    state = training.TrainState.create(START, {}, program)
    for wrong in (0, 4):
        with pytest.raises(ValueError, match=f"num_steps={wrong} at minibatch 0 are not whole"):
            program.advance(state, data, KEY, wrong)
    with pytest.raises(ValueError, match="the program has no phases"):
        linear_program().advance(state, data, KEY, 1)


@pytest.mark.parametrize("kind", ["sgd", "entropy"])
def test_two_devices_give_the_result_of_one(data, bn_variables, kind):
    def run(sharding):
        objective = objectives.adversarial_cross_entropy(apply_bn, **ATTACK)
        program = training.Program(apply_bn, objective, batch_size=8, sharding=sharding)
        tx = training.sgd(0.1) if kind == "sgd" else entropy(3)
        state = training.TrainState.create(*bn_variables, tx)
        if kind == "sgd":
            return program.sgd_steps(tx)(state, data, KEY, 3)[0]
        return program.entropy_step(tx, 3)(state, data, KEY)[0]

    mesh = jax.make_mesh((2,), ("batch",), (jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch"))
    one, two = run(None), run(sharding)
    close(two.params, one.params, rtol=1e-4, atol=1e-5)
    close(two.batch_stats, one.batch_stats, rtol=1e-4, atol=1e-5)


def test_program_size_does_not_grow_with_the_chain(data, bn_variables):
    def size(n_in):
        program, tx = bn_program(), entropy(n_in)
        state = training.TrainState.create(*bn_variables, tx)
        return len(program.entropy_step(tx, n_in).lower(state, data, KEY).as_text())

    assert size(12) < 1.05 * size(3)


# --- schedules, prediction, augmentation ---------------------------------------------------------


def test_the_last_minibatch_before_a_drop_uses_the_lower_rate():
    rate = training.step_decay(0.1, num_epochs=200, batches_per_epoch=391)
    steps = {99 * 391: 0.1, 100 * 391 - 2: 0.1, 100 * 391 - 1: 0.01, 150 * 391 - 2: 0.01}
    steps |= {150 * 391 - 1: 0.001, 200 * 391: 0.001, 0: 0.1}
    for step, expected in steps.items():
        assert float(rate(step)) == pytest.approx(expected, rel=1e-5), step
    for epoch, i in ((99, 389), (99, 390), (149, 389), (149, 390), (3, 17)):
        t = epoch + (i + 1) / 391  # the rule of the AWP code, in its own floats
        expected = 0.1 if t / 200 < 0.5 else 0.01 if t / 200 < 0.75 else 0.001
        assert float(rate(epoch * 391 + i)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("first_epoch", [0, 1])
def test_a_rate_asked_for_once_an_epoch(first_epoch):
    """The TRADES code counts epochs from 1 and drops when the counter reaches 100 and 150."""
    rate = training.step_decay(
        0.1, num_epochs=200, batches_per_epoch=391, unit="epoch", first_epoch=first_epoch
    )
    for epoch in range(98, 152):
        counter = epoch + first_epoch
        expected = 0.1 if counter < 100 else 0.01 if counter < 150 else 0.001
        for step in (epoch * 391, epoch * 391 + 390):
            assert float(rate(step)) == pytest.approx(expected, rel=1e-5), step


def test_prediction_is_pgd_in_eval_mode_whatever_the_batch(data, bn_variables):
    params, stats = bn_variables
    predict = training.make_predict(apply_bn, **ATTACK)
    indices = jnp.arange(22)
    whole = predict(params, stats, KEY, data.images, data.labels, indices)
    images = training.to_float(data.images)
    logits_fn = lambda x: apply_bn(params, stats, x, False)[0]
    np.testing.assert_array_equal(whole.clean, logits_fn(images).argmax(1))
    adversarial = attacks.pgd(KEY, logits_fn, images, data.labels, **ATTACK)
    np.testing.assert_array_equal(whole.adversarial, logits_fn(adversarial).argmax(1))
    part = predict(params, stats, KEY, data.images[5:9], data.labels[5:9], indices[5:9])
    np.testing.assert_array_equal(part.adversarial, whole.adversarial[5:9])


def test_crop_cuts_windows_of_the_reflected_image():
    image = jnp.arange(36.0).reshape(1, 6, 6, 1) / 36
    images = jnp.repeat(image, 200, axis=0)
    crops = np.asarray(random_crop(jax.random.key(2), images, padding=2))
    padded = np.pad(np.asarray(image[0]), ((2, 2), (2, 2), (0, 0)), mode="reflect")
    windows = {padded[i : i + 6, j : j + 6].tobytes(): (i, j) for i in range(5) for j in range(5)}
    places = [windows[crop.tobytes()] for crop in crops]
    assert len(set(places)) == 25


def test_flip_mirrors_about_half_of_the_images():
    images = jnp.array(np.random.default_rng(0).uniform(size=(400, 4, 5, 2)))
    flipped = np.asarray(random_flip(jax.random.key(1), images))
    same = (flipped == np.asarray(images)).all((1, 2, 3))
    mirrored = (flipped == np.asarray(images)[:, :, ::-1]).all((1, 2, 3))
    assert (same ^ mirrored).all() and 150 < mirrored.sum() < 250


def test_unknown_augmentation_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'reflect_crop_flip'"):
        augmentation("reflect_crop_flips")
