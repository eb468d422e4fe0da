"""The counted passes are those that training runs."""

import collections

import jax
import pytest

from experiments.reporting.passes import counted
from experiments.run import build, train
from tests.helpers.tiny_runs import tiny

CASES = {
    "at": {},
    "at with a clean pass": {"bn__clean_pass": True},
    "awp": {"warmup_epochs": 1},
    "trades_awp": {},
    "at_ensgd": {"entropy__n_in": 4, "bn__refresh_batches": 3},
    "trades_ensgd": {"entropy__n_in": 4, "bn__refresh_batches": 2},
    "awp_ensgd": {"entropy__n_in": 4, "bn__attack": "eval", "warmup_epochs": 1},
}


@pytest.fixture
def seen(monkeypatch):
    """Forward and backward passes of every network in training, as they are executed."""
    done = collections.Counter()

    @jax.custom_vjp
    def through(logits):
        jax.debug.callback(lambda: done.update(forward=1))
        return logits

    def backward(_, cotangents):
        jax.debug.callback(lambda: done.update(backward=1))
        return (cotangents,)

    through.defvjp(lambda logits: (through(logits), None), backward)

    def make_apply(module, plain=build.make_apply):
        def apply_fn(params, batch_stats, images, train):
            logits, batch_stats = plain(module)(params, batch_stats, images, train)
            return through(logits), batch_stats

        return apply_fn

    monkeypatch.setattr("experiments.run.build.make_apply", make_apply)
    monkeypatch.setattr("experiments.run.devices.data_sharding", lambda *_: None)
    return done


@pytest.mark.usefixtures("norm_model")
@pytest.mark.parametrize(
    "name", [n if n == "awp" else pytest.param(n, marks=pytest.mark.slow) for n in CASES]
)
def test_passes_are_counted(name, seen, monkeypatch, tmp_path):
    config = tiny(name.split()[0], model="tiny_norm", width=None, num_epochs=2, **CASES[name])
    rows = []
    monkeypatch.setattr("experiments.run.loop.announce", lambda *_: None)

    # Evaluations are not counted.
    def evaluated(*_):
        jax.effects_barrier()
        rows.append(sum(seen.values()))
        return {"clean": 0.0, "robust": 0.0}

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("experiments.run.loop.Trainer._evaluate", evaluated)
    monkeypatch.setattr("experiments.run.train._final_predictions", stop)
    with pytest.raises(KeyboardInterrupt):
        train.train_and_evaluate(config, tmp_path / "run", verbose=False)
    metrics = train.RunDirectory(tmp_path / "run").metrics()
    assert [row["passes"] // config.batch_size for row in counted(config, metrics)] == rows
