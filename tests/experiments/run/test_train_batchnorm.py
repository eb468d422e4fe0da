"""Training of networks with running statistics, and in mixed precision."""

import jax
import numpy as np
import pytest

from experiments.run.directory import RunDirectory
from experiments.run.task import Stream, key_for, load_task
from tests.helpers.tiny_runs import (
    Stopped,
    accuracies,
    assert_bitwise,
    parts,
    run,
    stop_after,
    tiny,
)


def true_statistics(config, path):
    """Mean and variance in front of BatchNorm over all training images, clean."""
    [params] = parts(path, config, ("params",))
    task = load_task(config)
    x = (np.float32(task.train.images) / 255).reshape(len(task.train.images), -1)
    x = x @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"]
    return x.mean(0), x.var(0)


def test_refreshed_statistics_belong_to_the_slow_weights(norm_model, tmp_path):
    errors, params = {}, {}
    for mode in ("inner", "refresh"):
        config = tiny(
            "at_ensgd",
            model="tiny_norm",
            width=None,
            bn__slow_weights=mode,
            bn__refresh_batches=60,
            threat__eps=0.01,
            threat__step_size=0.01,
        )
        report = run(config, tmp_path / mode)
        path = tmp_path / mode / "last.ckpt"
        params[mode], stats = parts(path, config)
        mean, var = true_statistics(config, path)
        found = stats["BatchNorm_0"]
        errors[mode] = max(
            np.abs(found["mean"] - mean).max() / np.sqrt(var.mean()),
            np.abs(found["var"] / var - 1).max(),
        )
        # What was evaluated is what was stored.
        task = load_task(config)
        clean, robust = accuracies(config, path, *task.test, key_for(config, Stream.TEST))
        assert (report["test"]["last"]["clean"], report["test"]["last"]["robust"]) == (
            clean,
            robust,
        )
    # The statistics that evaluation uses don't feed back into training.
    assert_bitwise(params["inner"], params["refresh"])
    assert errors["refresh"] < 0.25
    assert errors["inner"] > 1.5 * errors["refresh"]


def test_batch_statistics_resume(norm_model, tmp_path, monkeypatch):
    config = tiny("at", model="tiny_norm", width=None, bn__attack="eval", bn__clean_pass=True)
    run(config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_after(patch, 1)
        with pytest.raises(Stopped):
            run(config, tmp_path / "cut")
    run(config, tmp_path / "cut")
    # Attacked in eval mode, training depends on the running statistics.
    whole, cut = (parts(tmp_path / n / "last.ckpt", config) for n in ("whole", "cut"))
    assert_bitwise(cut, whole)
    rows = RunDirectory(tmp_path / "whole").metrics()
    assert all(row["train_clean"] >= row["train_robust"] for row in rows)


@pytest.mark.slow
def test_bfloat16_keeps_float32_weights(norm_model, tmp_path):
    config = tiny(model="tiny_norm", width=None, precision="bfloat16", num_epochs=1)
    report = run(config, tmp_path)
    assert report["precision"] == "bfloat16"
    leaves = jax.tree.leaves(parts(tmp_path / "last.ckpt", config))
    assert {leaf.dtype for leaf in leaves} == {np.dtype("float32")}


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["refresh", "inner"])
def test_preact_resnet_trains(mode, tmp_path):
    config = tiny(
        "at_ensgd",
        model="preact_resnet18",
        width=4,
        augment="reflect_crop_flip",
        bn__slow_weights=mode,
        bn__refresh_batches=4,
    )
    report = run(config, tmp_path)
    task = load_task(config)
    path = tmp_path / "last.ckpt"
    clean, robust = accuracies(config, path, *task.test, key_for(config, Stream.TEST))
    assert (report["test"]["last"]["clean"], report["test"]["last"]["robust"]) == (clean, robust)
    assert report["minibatch_gradients"] == 15
