"""Every method builds, takes real steps and evaluates; runs of several phases do what they say."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.run import build, loop
from experiments.run.directory import RunDirectory
from experiments.run.task import Stream, key_for, load_task
from jaxadv import objectives, optim, training
from tests.helpers.tiny_runs import (
    CONFIGS,
    Stopped,
    assert_bitwise,
    parts,
    run,
    spans,
    stop_after,
    tiny,
)


def assemble(config):
    task = load_task(config)
    built = build.build(config, task)
    data = training.DeviceData(*(jnp.asarray(x) for x in task.train))
    return task, built, data


def test_initial_weights_do_not_depend_on_how_they_are_compiled():
    config = tiny("at", model="small_convnet")
    task, built, _ = assemble(config)
    module, shape = build.build_model(config, task.dataset), task.dataset.image_shape
    full = {"xla_backend_optimization_level": 3}  # that of a run, not of these tests
    init = jax.jit(lambda key: build.init_variables(module, key, shape), compiler_options=full)
    state = built.make_state()
    assert_bitwise(state.params, init(key_for(config, Stream.INIT))[0])
    assert jax.tree.map(np.shape, built.shapes) == jax.tree.map(np.shape, state)


@pytest.mark.parametrize(
    ("method", "norm"),
    [(method, "linf") for method in CONFIGS]
    + [("at", "l2")]
    + [pytest.param(m, "l2", marks=pytest.mark.slow) for m in ("trades", "awp_ensgd")],
)
def test_a_method_takes_two_steps_and_evaluates(norm_model, method, norm):
    """Alone, without the loop: two updates that change all parameters, and a prediction."""
    config = tiny(method, model="tiny_norm", width=None, threat__norm=norm)
    task, built, data = assemble(config)
    state = built.make_state()
    before = jax.device_get(state)
    step = 0
    for _ in range(2):
        count = built.program.call_length(step, left=built.batches_per_epoch, at_most=1)
        assert count == built.program.phase_at(step).group
        state, metrics = built.program.advance(state, data, key_for(config, Stream.TRAIN), count)
        assert np.isfinite(float(metrics["loss"]))
        step += count
    assert int(state.step) == step
    for old, new in zip(jax.tree.leaves(before.params), jax.tree.leaves(state.params), strict=True):
        assert np.isfinite(new).all() and not np.array_equal(old, new)
    stats = before.batch_stats["BatchNorm_0"], state.batch_stats["BatchNorm_0"]
    assert not np.array_equal(stats[0]["mean"], stats[1]["mean"])
    key = key_for(config, Stream.TEST)
    predictions = built.predict(state.params, state.batch_stats, key, *task.test)
    assert predictions.clean.shape == predictions.adversarial.shape == (50,)


PHASED = dict(
    num_epochs=4,
    warmup_epochs=2,
    entropy__n_in=3,
    entropy__stop_at=0.75,
    entropy__noise=0.0,
    lr_drops=(0.5,),
    awp__gamma=0.05,
    threat__warmup=1.5,
)


def by_hand(config):
    """Warm-up, EntropySGD with AWP and SGD with AWP, put together from the library."""
    task, built, data = assemble(config)
    objective = objectives.trades(
        built.apply_fn, eps=config.threat.eps, step_size=config.threat.step_size, num_steps=3
    )
    program = lambda gamma: training.Program(
        built.apply_fn,
        objective,
        batch_size=24,
        weight_perturbation=gamma,
        attack_scale=lambda step: jnp.minimum(step / 8, 1.0),  # 1.5 epochs of 5 minibatches
    )
    # The rate drops when the epoch, counted from 1, reaches half of 4: with minibatch 5.
    after = lambda count: 0.01
    key, params = key_for(config, Stream.TRAIN), built.make_state().params
    tx = training.sgd(0.1)
    state = training.TrainState.create(params, {}, tx)
    state, _ = program(0.0).sgd_steps(tx, perturbed_decay=5e-4)(state, data, key, 5)
    tx = optim.entropy_sgd(after, n_in=3, noise=0, new_weight=0.25)
    state = state.replace(opt_state=tx.init(state.params))
    for _ in range(4):  # epochs 2 and 3 are 10 minibatches: the fourth chain ends in epoch 4
        state, _ = program(0.05).entropy_step(tx, 3)(state, data, key)
    tx = training.sgd(after)
    state = state.replace(opt_state=tx.init(state.params))
    state, _ = program(0.05).sgd_steps(tx, perturbed_decay=5e-4)(state, data, key, 3)
    assert int(state.step) == 20
    return state


def test_a_run_of_three_phases_is_their_sum(tmp_path, monkeypatch):
    """Whole, and stopped inside the second phase and resumed."""
    config = tiny("trades_awp_ensgd_tuned", **PHASED)
    assert spans(config, 5) == [(0, 0, 5), (3, 5, 17), (0, 17, 20)]
    report = run(config, tmp_path / "whole")
    assert report["minibatch_gradients"] == 20
    rows = RunDirectory(tmp_path / "whole").metrics()
    # Chains of three that don't fit into epochs 2 and 3 are made in the next.
    assert [row["step"] for row in rows] == [5, 8, 14, 20]
    expected = by_hand(config)
    [found] = parts(tmp_path / "whole" / "last.ckpt", config, ("params",))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), found, expected.params
    )

    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", -1)
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(Stopped):
            run(config, tmp_path / "cut")
    run(config, tmp_path / "cut")
    whole, cut = (parts(tmp_path / n / "last.ckpt", config) for n in ("whole", "cut"))
    assert_bitwise(cut, whole)


def test_weight_decay_acts_on_the_perturbed_weights_by_option(monkeypatch):
    seen, make = [], training.Program.sgd_steps
    watched = lambda self, tx, **options: (seen.append(options), make(self, tx, **options))[1]
    monkeypatch.setattr(training.Program, "sgd_steps", watched)
    for is_perturbed in (True, False):
        assemble(tiny("awp", awp__decay_perturbed=is_perturbed, weight_decay=0.01))
    assert seen == [{"perturbed_decay": 0.01}, {"perturbed_decay": 0.0}]


@pytest.mark.parametrize("method", ["at", "awp"])
def test_the_objective_knows_whether_the_weights_move(method, monkeypatch):
    seen, make = [], objectives.adversarial_cross_entropy
    watched = lambda *args, **options: (seen.append(options), make(*args, **options))[1]
    monkeypatch.setattr(objectives, "adversarial_cross_entropy", watched)
    assemble(tiny(method))
    assert seen[0]["weights_move"] is (method == "awp")


def test_each_optimizer_starts_fresh(tmp_path):
    """The momentum of the warm-up does not reach the SGD after EntropySGD."""
    config = tiny("trades_awp_ensgd_tuned", **PHASED)
    task, built, data = assemble(config)
    key, state = key_for(config, Stream.TRAIN), built.make_state()
    first = lambda state, i: jax.tree.leaves(optax.tree.get(state.opt_state[i], "trace"))
    for start, count in ((0, 5), (5, 3), (8, 3), (11, 3), (14, 3)):
        assert built.program.call_length(start, left=20) == count
        state, _ = built.program.advance(state, data, key, count)
    buffers = [np.concatenate([np.ravel(x) for x in first(state, i)]) for i in (0, 2)]
    assert np.any(buffers[0]) and not np.any(buffers[1])
    assert int(state.opt_state[1].count) == 4
    with pytest.raises(ValueError, match="num_steps=8 at minibatch 0 are not whole updates"):
        built.program.advance(built.make_state(), data, key, 8)


def test_statistics_and_clean_accuracy_follow_the_phase(norm_model, tmp_path, monkeypatch):
    """SVHN's warm-up in small: clean accuracy of the SGD epoch, refreshed statistics afterwards."""
    config = tiny(
        "at_ensgd",
        model="tiny_norm",
        width=None,
        warmup_epochs=1,
        bn__clean_pass=True,
        num_epochs=2,
    )
    refreshed, make = [], build.build

    def watched(*args):
        built = make(*args)

        def refresh(state, *rest):
            refreshed.append(int(state.step))
            return built.refresh(state, *rest)

        return built._replace(refresh=refresh)

    monkeypatch.setattr(build, "build", watched)
    run(config, tmp_path)
    rows = RunDirectory(tmp_path).metrics()
    assert rows[0]["train_clean"] > 0 and rows[1]["train_clean"] is None
    assert [row["step"] for row in rows] == [5, 10] and refreshed == [10]
