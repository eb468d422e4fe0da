"""Runs that several test files look at, trained once, and a compilation cache of this session."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments import build, checkpoints, cli, settings, train
from experiments.runs import RunDirectory

ROOT = Path(__file__).parents[2]
METHODS = ("at", "at_ensgd", "at_2nd_ensgd")


@pytest.fixture(scope="session", autouse=True)
def compilation_cache(tmp_path_factory):
    """The same program is compiled once a session, also by subprocesses and xdist's workers."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / "jax-cache"
    options = {
        "jax_compilation_cache_dir": str(folder),
        "jax_persistent_cache_min_compile_time_secs": 0.2,
    }
    before = {name: getattr(jax.config, name) for name in options}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(folder))
        for name, value in options.items():
            jax.config.update(name, value)
        yield folder
    for name, value in before.items():
        jax.config.update(name, value)


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
    task = build.load_task(config)
    return jax.eval_shape(build.build(config, task).make_state)


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
    config = cli.load_config(method, scale, dataset, **overrides)
    config.unlock()
    return config


@dataclasses.dataclass
class Finished:
    """A finished run."""

    config: object
    directory: RunDirectory
    report: dict


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A function from a method to its finished tiny run, trained when it is first asked for."""
    runs = {}

    def get(method: str) -> Finished:
        if method not in runs:
            config = tiny(method)
            workdir = tmp_path_factory.mktemp(method)
            report = train.train_and_evaluate(config, workdir, verbose=False)
            runs[method] = Finished(config, RunDirectory(workdir), report)
        return runs[method]

    return get


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
