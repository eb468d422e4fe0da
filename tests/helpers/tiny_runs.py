"""Configurations that train within a second, and what tests do with their runs."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import settings
from experiments.run import build, checkpoints, phases, train
from experiments.run.directory import RunDirectory
from experiments.run.task import load_task
from jaxadv import attacks, training

ROOT = Path(__file__).parents[2]
SECOND = pytest.param("at_2nd_ensgd", marks=pytest.mark.slow)
METHODS = ("at", "at_ensgd", SECOND)  # to be trained
AT_METHODS = ("at", "at_ensgd", "at_2nd_ensgd")
ALL_METHODS = (
    *AT_METHODS,
    *("awp", "awp_ensgd", "awp_2nd_ensgd"),
    *("trades", "trades_ensgd", "trades_awp", "trades_awp_ensgd", "trades_awp_ensgd_tuned"),
)
# Those of the paper and any others: a new file is tested without being entered anywhere.
CONFIGS = sorted(path.stem for path in (ROOT / "experiments" / "configs").glob("*.py"))


class TinyNorm(nn.Module):
    """One hidden layer and BatchNorm: what the big models do, compiled in a second."""

    num_classes: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images, train: bool = False):
        x = nn.Dense(16, dtype=self.dtype)(images.reshape(images.shape[0], -1))
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9, dtype=self.dtype)(x)
        return nn.Dense(self.num_classes)(nn.relu(x)).astype(jnp.float32)


def tiny_norm(num_classes: int = 10, *, mean: object, std: object, dtype: object) -> nn.Module:
    del mean, std  # BatchNorm does it
    return TinyNorm(num_classes, dtype)


class Stopped(Exception):
    """What :func:`stop_after` stops a run with."""


def stop_after(monkeypatch, count: int) -> None:
    """Makes training fail in its compiled call after ``count`` from here, as by a kill."""
    real, left = training.Program.advance, [count]

    def advance(*arguments):
        if not left[0]:
            raise Stopped
        left[0] -= 1
        return real(*arguments)

    monkeypatch.setattr(training.Program, "advance", advance)


@dataclasses.dataclass
class Finished:
    """A finished run."""

    config: object
    directory: RunDirectory
    report: dict


def tiny(method: str = "at", dataset: str = "digits", **overrides):
    """A resolved configuration that trains within a second: a small MLP on 128 images.

    ``overrides`` names fields by their dotted names with "__" for the dot.
    """
    config = load(method, dataset=dataset)
    values = {
        "model": "mlp",
        "width": 16,
        "train_size": 120,
        "test_size": 50,
        "selection_size": 40,
        "batch_size": 24,
        "eval__batch_size": 50,
        "eval__num_steps": 5,
        "num_epochs": 3,
        "threat__eps": 0.05,
        "threat__step_size": 0.02,
        "eval__eps": 0.05,
        "eval__step_size": 0.02,
        "threat__num_steps": 3,
        "lr_drops": (0.4,),
    }
    for name, value in (values | overrides).items():
        *path, leaf = name.split("__")
        section = config[path[0]] if path else config
        section[leaf] = value
    return settings.resolve(config, dataset)


def parts(path: Path, config, names: tuple[str, ...] = ("params", "batch_stats")) -> tuple:
    """Some parts of a checkpoint, as arrays."""
    return checkpoints.load_part(path, names, tuple(getattr(shapes(config), n) for n in names))


def shapes(config):
    """The TrainState of a configuration, without its values."""
    task = load_task(config)
    return build.build(config, task).shapes


def spans(config, batches):
    """Inner iterations, first minibatch and end of the phases of a run."""
    made = phases.make_phases(config, batches, jax.random.key(0))
    program = training.Program(None, None, batch_size=1, phases=made)
    return [(phase.n_in, phase.first, phase.end) for phase in program.phases]


def assert_bitwise(found, expected):
    """Two pytrees of equal structure, dtypes and bits."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def assert_same_run(directory: RunDirectory, expected: "Finished"):
    """A run that was interrupted ended like one that was not, every epoch written once."""
    config = expected.config
    template = shapes(config)
    for name in ("last", "selected"):
        ours, theirs = getattr(directory, name), getattr(expected.directory, name)
        assert_bitwise(parts(ours, config), parts(theirs, config))
    found, _ = checkpoints.load(directory.last, template)
    assert_bitwise(found, checkpoints.load(expected.directory.last, template)[0])
    rows, expected_rows = directory.metrics(), expected.directory.metrics()
    assert [row["epoch"] for row in rows] == list(range(1, config.num_epochs + 1))
    timing = ("seconds", "images_per_second")
    for row, other in zip(rows, expected_rows, strict=True):
        for name in row.keys() - timing:
            assert row[name] == (other[name] and pytest.approx(other[name], rel=1e-5)), name
    assert directory.report()["test"] == expected.report["test"]
    assert directory.report()["selected_epoch"] == expected.report["selected_epoch"]


def load(method: str, scale: str = "smoke", dataset: str = "digits", **overrides):
    """A configuration that can still be changed."""
    config = settings.load_config(method, scale, dataset, **overrides)
    config.unlock()
    return config


def python(*arguments: str, cwd: Path, check: bool = False) -> subprocess.CompletedProcess:
    """Runs this interpreter with the repository importable."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=check,
    )


def run(config, workdir):
    return train.train_and_evaluate(config, workdir, verbose=False)


def accuracies(config, path, images, labels, key):
    """Clean and robust accuracy in %, in one batch and without the code of the experiments."""
    params, batch_stats = parts(path, config)
    task = load_task(config)
    apply_fn = build.make_apply(build.build_model(config, task.dataset))
    logits_fn = lambda x: apply_fn(params, batch_stats, x, False)[0]
    clean = jnp.asarray(images, jnp.float32) / 255
    adversarial = attacks.pgd(
        key,
        logits_fn,
        clean,
        jnp.asarray(labels),
        norm=config.threat.norm,
        eps=config.eval.eps,
        step_size=config.eval.step_size,
        num_steps=config.eval.num_steps,
    )
    correct = [np.asarray(logits_fn(x).argmax(1)) == labels for x in (clean, adversarial)]
    return [100 * c.sum() / len(labels) for c in correct]
