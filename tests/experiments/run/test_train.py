"""Training from end to end: what a run writes, and whether its numbers are its checkpoints'."""

import collections
import logging
import shutil

import jax
import numpy as np
import pytest

from experiments.reporting.words import duration
from experiments.run import announce, build, checkpoints, devices, loop, train
from experiments.run.directory import RunDirectory
from experiments.run.task import Stream, key_for, load_task
from experiments.settings.optimizers import OPTIMIZERS
from jaxadv import optim, training
from tests.helpers.tiny_runs import (
    METHODS,
    SECOND,
    accuracies,
    assert_bitwise,
    load,
    parts,
    run,
    shapes,
    tiny,
)

# In the default tests one of two methods where the other one takes the same way.
SLOW_AT = pytest.param("at", marks=pytest.mark.slow)


# What a run writes


@pytest.mark.parametrize("method", METHODS)
def test_a_run_leaves_all_its_files(method, finished):
    done = finished(method)
    names = {path.name for path in done.directory.path.iterdir()}
    assert names == {
        *("config.json", "environment.json", "metrics.jsonl"),
        *("last.ckpt", "selected.ckpt", "selected-copy.ckpt", "report.json", "lock"),
        *("report.html", "predictions-selected.npz"),
    }
    report = done.directory.report()
    assert report == done.report
    assert report["method"] == method and report["scale"] == "smoke" and report["seed"] == 0
    assert report["attack"] == "PGD-5" and report["threat"] == "linf, eps 0.05"
    assert report["selection"] == "validation" and report["precision"] == "float32"
    assert report["data"]["train"] == 120 and report["data"]["test"] == 50
    assert report["environment"]["device"] and report["environment"]["commit"] is not None
    rows = done.directory.metrics()
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert np.all(np.diff([row["seconds"] for row in rows]) > 0)
    assert rows[-1]["step"] == report["minibatch_gradients"] == 15
    for row in rows:
        assert np.isfinite(row["train_loss"]) and 0 <= row["train_robust"] <= 100


@pytest.mark.parametrize("method", METHODS)
def test_logged_accuracies_are_those_of_the_checkpoints(method, finished):
    done = finished(method)
    config, directory = done.config, done.directory
    task = load_task(config)
    best = max(directory.metrics(), key=lambda row: row["selection_robust"])
    key = key_for(config, Stream.SELECTION)
    for path, row in ((directory.selected, best), (directory.last, directory.metrics()[-1])):
        clean, robust = accuracies(config, path, *task.selection, key)
        assert (row["selection_clean"], row["selection_robust"]) == (clean, robust)
    assert done.report["selected_epoch"] == best["epoch"]
    for name in ("selected", "last"):
        path = getattr(directory, name)
        clean, robust = accuracies(config, path, *task.test, key_for(config, Stream.TEST))
        found = done.report["test"][name]
        assert (found["clean"], found["robust"], found["images"]) == (clean, robust, 50)


@pytest.mark.parametrize("method", [SLOW_AT, "at_ensgd", SECOND])
def test_training_learns(method, tmp_path):
    """The loss falls, and the model ends far above chance on images it has not seen."""
    config = tiny(method, num_epochs=24, train_size=600, eval__every=24, lr_drops=())
    report = run(config, tmp_path)
    rows = RunDirectory(tmp_path).metrics()
    assert rows[-1]["train_loss"] < 0.5 * rows[0]["train_loss"]
    assert report["test"]["last"]["clean"] > 70
    assert 50 < report["test"]["last"]["robust"] <= report["test"]["last"]["clean"]


def test_first_lines_say_what_runs(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(announce, "LONG_SECONDS", 0)
    train.train_and_evaluate(tiny(), tmp_path)
    first, second, third, *rest = capsys.readouterr().out.splitlines()
    num_parameters = 64 * 16 + 16 + 16 * 16 + 16 + 16 * 10 + 10
    for part in (
        "cores, 2 devices with 12 images each, float32, mlp with",
        f"{num_parameters:,} parameters",
        "15 minibatches of 24 in 3 epochs, about",
    ):
        assert part in first
    assert "scale smoke: 120 training and 50 test images, width 16, 3 epochs, not the pap" in second
    assert "this CPU it would take about" in third and "--config=configs/at.py:laptop" in third
    assert sum(line.startswith("epoch ") for line in rest) == 3


@pytest.mark.parametrize(
    ("seconds", "text"), [(90, "90 s"), (600, "10 min"), (36_000, "10 h"), (6e6, "69 days")]
)
def test_durations_are_readable(seconds, text):
    assert duration(seconds) == text


# Reproducibility


@pytest.mark.parametrize("method", ["at", "at_ensgd", SECOND])
def test_the_same_seed_gives_the_same_bits(method, finished, tmp_path):
    done = finished(method)
    run(tiny(method), tmp_path / "same")
    assert_bitwise(
        parts(tmp_path / "same" / "last.ckpt", done.config), parts(done.directory.last, done.config)
    )


def test_another_seed_gives_another_run(finished, tmp_path):
    run(tiny(seed=1), tmp_path)
    first, other = (
        jax.tree.leaves(parts(path, tiny()))
        for path in (finished("at").directory.last, tmp_path / "last.ckpt")
    )
    assert all(not np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_one_device_and_two_agree(finished, tmp_path, monkeypatch):
    assert jax.device_count() == 2
    assert devices.data_sharding(24) is not None
    with pytest.raises(ValueError, match=r"batch_size=25 .* 2 devices; .*batch_size=24 or 26"):
        devices.data_sharding(25)
    monkeypatch.setattr(devices, "data_sharding", lambda batch_size: None)
    run(tiny(), tmp_path)
    one = parts(tmp_path / "last.ckpt", tiny())
    two = parts(finished("at").directory.last, tiny())
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


class Compilations(logging.Handler):
    """Counts the programs that jax compiles, by name."""

    def __init__(self):
        super().__init__(logging.DEBUG)
        self.names = collections.Counter()

    def emit(self, record):
        words = record.getMessage().split()
        if words[0] == "Compiling":
            self.names[words[1]] += 1


@pytest.mark.parametrize("method", [SLOW_AT, "at_ensgd"])
def test_a_program_is_compiled_once_whatever_the_number_of_epochs(method, tmp_path):
    counts = {}
    for num_epochs in (2, 4):  # chains of 2 divide both runs
        handler = Compilations()
        logger = logging.getLogger("jax._src.interpreters.pxla")
        logger.addHandler(handler)
        propagate, logger.propagate = logger.propagate, False
        jax.config.update("jax_log_compiles", True)  # in every thread
        try:
            run(tiny(method, num_epochs=num_epochs), tmp_path / str(num_epochs))
        finally:
            jax.config.update("jax_log_compiles", False)
            logger.removeHandler(handler)
            logger.propagate = propagate
        counts[num_epochs] = handler.names
    # The first run also compiles what JAX keeps for the whole process.
    assert not counts[4] - counts[2], (counts[4], counts[2])
    assert counts[2]["jit(run)"] == 1, counts
    # Once at the size of the selection images and once at that of the test images.
    assert counts[2]["jit(predict)"] == 2, counts
    assert counts[2]["jit(attack_images)"] == 1, counts  # the examples of the report


# The paper's protocol


def test_entropy_sgd_takes_as_many_minibatch_gradients_as_sgd(finished, tmp_path):
    """5 minibatches an epoch; chains of 4 cross every epoch's end and the last one is cut."""
    report = run(tiny("at_ensgd", entropy__n_in=4), tmp_path)
    rows = RunDirectory(tmp_path).metrics()
    assert [row["step"] for row in rows] == [4, 8, 15]
    assert report["minibatch_gradients"] == finished("at").report["minibatch_gradients"] == 15


@pytest.mark.parametrize(
    ("fields", "steps"),
    [
        pytest.param({"entropy__n_in": 7}, [0, 7, 15], marks=pytest.mark.slow),
        pytest.param({"entropy__n_in": 40}, [0, 0, 15], marks=pytest.mark.slow),
        # A step takes one minibatch more, so that the run ends with a chain of none.
        ({"entropy__n_in": 6, "entropy__preset": "ucla_exact"}, [0, 7, 15]),
    ],
)
def test_no_gradient_is_lost_or_added_at_the_end(fields, steps, tmp_path):
    config = tiny("at_ensgd", **fields)
    assert run(config, tmp_path)["minibatch_gradients"] == 15
    assert [row["step"] for row in RunDirectory(tmp_path).metrics()] == steps
    state, _ = checkpoints.load(tmp_path / "last.ckpt", shapes(config))
    assert state.step == 15


def captured_optimizer(monkeypatch, config):
    """What the optimizer's factory is called with."""
    seen = []
    first_order = config.optimizer in OPTIMIZERS
    factory = OPTIMIZERS[config.optimizer] if first_order else optim.entropy_sgd
    recorded = lambda *a, **k: (seen.append((a, k)), factory(*a, **k))[1]
    if first_order:
        monkeypatch.setitem(OPTIMIZERS, config.optimizer, recorded)
    else:
        monkeypatch.setattr(optim, "entropy_sgd", recorded)
    task = load_task(config)
    built = build.build(config, task)
    [(arguments, options)] = seen
    return arguments[0] if arguments else options["learning_rate"], options, built


def test_the_learning_rate_drops_at_half_and_three_quarters(monkeypatch):
    config = tiny(num_epochs=200, lr_drops=(0.5, 0.75))
    rate, options, built = captured_optimizer(monkeypatch, config)
    assert options == {"momentum": 0.9, "weight_decay": 5e-4}
    batches = built.batches_per_epoch
    assert batches == 5
    # The last minibatch before a drop already has the lower rate, as in the AWP code.
    steps = [0, 100 * batches - 2, 100 * batches - 1, 150 * batches - 2, 150 * batches - 1, 999]
    np.testing.assert_allclose(
        [float(rate(step)) for step in steps], [0.1, 0.1, 0.01, 0.01, 0.001, 0.001], rtol=1e-6
    )


def test_entropy_sgd_drops_at_the_next_outer_step(monkeypatch):
    config = tiny("at_ensgd", num_epochs=200, lr_drops=(0.5, 0.75), entropy__n_in=20)
    rate, options, built = captured_optimizer(monkeypatch, config)
    assert built.program.phase_at(0).group == 20
    np.testing.assert_allclose(
        [float(rate(outer)) for outer in (0, 24, 25, 37, 38, 49)],
        [0.1, 0.1, 0.01, 0.01, 0.001, 0.001],
        rtol=1e-6,
    )
    assert {name: options[name] for name in ("n_in", "gamma", "noise", "new_weight")} == {
        "n_in": 20,
        "gamma": 0.03,
        "noise": 1e-4,
        "new_weight": 0.25,
    }
    assert options["second_order"] is False


def test_every_field_of_entropy_sgd_reaches_the_optimizer(monkeypatch):
    fields = {"gamma": 0.02, "noise": 2e-4, "new_weight": 0.6, "momentum": 0.4}
    fields |= {"inner_momentum": 0.3, "inner_learning_rate": 0.05, "weight_decay": 1e-3}
    fields |= {"n_in": 3, "beta_aware": True}
    overrides = {f"entropy__{name}": value for name, value in fields.items()}
    config = tiny("at_2nd_ensgd", **overrides, entropy__alpha=0.4)  # of the old average
    _, options, _ = captured_optimizer(monkeypatch, config)
    expected = fields | {"second_order": True, "preset": None}
    assert {name: options[name] for name in expected} == expected


def test_selection_on_the_test_set_is_said(tmp_path):
    config = tiny(selection="test", num_epochs=1, train_size=1437)
    report = run(config, tmp_path)
    assert report["selection"] == "test"
    assert report["data"]["train"] == 1437
    assert report["data"]["selection"] == report["data"]["test"] == 50
    assert "checkpoint selected on test images" in train.describe_report(report)
    [row] = RunDirectory(tmp_path).metrics()
    task = load_task(config)
    found = accuracies(
        config, tmp_path / "last.ckpt", *task.test, key_for(config, Stream.SELECTION)
    )
    assert [row["selection_clean"], row["selection_robust"]] == found


def test_selection_every_few_epochs_and_at_the_end(tmp_path):
    report = run(tiny(eval__every=2), tmp_path)
    rows = RunDirectory(tmp_path).metrics()
    assert [row["selection_robust"] is None for row in rows] == [True, False, False]
    assert report["selected_epoch"] in (2, 3)


def test_the_best_epoch_is_kept_and_ties_go_to_the_first(tmp_path, monkeypatch):
    values = iter([20.0, 60.0, 60.0])
    evaluate = loop.Trainer._evaluate
    monkeypatch.setattr(
        loop.Trainer, "_evaluate", lambda *a: evaluate(*a) | {"robust": next(values)}
    )
    config = tiny()
    seen = []
    save = checkpoints.save
    monkeypatch.setattr(
        checkpoints, "save", lambda path, *a: (seen.append(path.name), save(path, *a))
    )
    report = run(config, tmp_path)
    assert report["selected_epoch"] == 2 and report["last_epoch"] == 3
    last, selected, copy = "last.ckpt", "selected.ckpt", "selected-copy.ckpt"
    assert seen == [copy, selected, last, copy, selected, last, last]
    chosen, final = (jax.tree.leaves(parts(tmp_path / n, config)) for n in (selected, last))
    assert not np.array_equal(chosen[0], final[0])


# Mistakes and failures


def test_a_finished_run_is_not_trained_again(finished, tmp_path, monkeypatch):
    shutil.copytree(finished("at").directory.path, tmp_path / "run")
    files = lambda: {p.name: p.read_bytes() for p in (tmp_path / "run").glob("*.[crm]*")}
    before = files()

    def trained(*_):
        raise AssertionError("it was trained again")

    monkeypatch.setattr(train, "Trainer", trained)
    assert run(tiny(), tmp_path / "run") == finished("at").report
    assert files() == before and "last.ckpt" in before


def test_another_configuration_does_not_touch_a_run(finished, tmp_path):
    shutil.copytree(finished("at").directory.path, tmp_path / "run")
    files = lambda: {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir()}
    before = files()
    with pytest.raises(
        ValueError, match="different configuration .learning_rate=0.1 there; 1 diff"
    ):
        run(tiny(learning_rate=0.2), tmp_path / "run")
    assert files() == before


def test_a_disk_without_room_is_noticed_before_training(tmp_path, monkeypatch):
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 1000))
    monkeypatch.setattr(train, "Trainer", None)
    with pytest.raises(OSError, match="free some space or choose another --workdir"):
        run(tiny(), tmp_path)


def test_a_non_finite_loss_stops_and_keeps_the_last_good_checkpoint(tmp_path):
    # The rate explodes in epoch 2.
    config = tiny(lr_drops=(0.5,), lr_factor=1e30)
    with pytest.raises(FloatingPointError) as error:
        run(config, tmp_path)
    for part in (
        "the loss is not finite at minibatch 8 (epoch 2)",
        "last good checkpoint is kept in",
        str(tmp_path / "last.ckpt"),
        "smaller --config.learning_rate (now 0.1)",
        "in a new --workdir",
    ):
        assert part in str(error.value)
    state, record = checkpoints.load(tmp_path / "last.ckpt", shapes(config))
    assert state.step == 5 and len(record["rows"]) == 1
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
    assert RunDirectory(tmp_path).report() is None


@pytest.mark.parametrize("method", [SLOW_AT, "at_ensgd"])
def test_a_non_finite_loss_in_the_first_epoch(method, tmp_path):
    with pytest.raises(FloatingPointError, match="epoch 1.. There is no checkpoint yet. Try a sm"):
        run(tiny(method, learning_rate=1e30, entropy__learning_rate=1e30), tmp_path)
    assert not (tmp_path / "last.ckpt").exists() and not (tmp_path / "selected.ckpt").exists()


@pytest.mark.parametrize("inside", [False, True], ids=["epoch's end", "inside an epoch"])
def test_parameters_that_break_after_a_finite_loss_are_not_saved(inside, tmp_path, monkeypatch):
    """The loss of an update is computed before it, so that the loss of the last one is finite."""
    real = training.Program.advance

    def advance(*arguments):
        state, metrics = real(*arguments)
        return state.replace(params=jax.tree.map(lambda p: p * np.inf, state.params)), metrics

    monkeypatch.setattr(training.Program, "advance", advance)
    if inside:
        monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", -1)
    with pytest.raises(FloatingPointError, match="parameters are not finite after minibatch 4"):
        run(tiny(), tmp_path)
    assert not (tmp_path / "last.ckpt").exists() and not (tmp_path / "selected.ckpt").exists()


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_the_smoke_scale_runs(method, tmp_path):
    report = run(load(method), tmp_path)
    assert report["minibatch_gradients"] > 0 and report["model"] == "small_convnet"
