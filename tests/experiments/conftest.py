"""Runs that several test files look at, trained once, and a compilation cache of this session."""

import os

import jax
import pytest

from experiments.run import train
from experiments.run.directory import RunDirectory
from jaxadv.models import MODELS
from tests.helpers.tiny_runs import Finished, tiny, tiny_norm


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


@pytest.fixture
def norm_model(monkeypatch):
    """``config.model="tiny_norm"``: a small network with BatchNorm."""
    monkeypatch.setitem(MODELS, "tiny_norm", tiny_norm)
