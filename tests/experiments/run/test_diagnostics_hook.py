"""Diagnostics of smoothness in the training loop: what they log, and that they change nothing."""

import json
import math
from typing import Any

import jax
import numpy as np
import pytest

from experiments.run import build
from experiments.run.diagnostics import Diagnostics
from experiments.run.directory import RunDirectory
from experiments.run.task import load_task
from tests.helpers.tiny_runs import assert_bitwise, parts, run, tiny

ALWAYS = (
    *("step", "update", "size", "total", "parameter", "attack", "attack_share", "attack_motion"),
    *("quotient", "weak_convexity", "violates_mon", "frozen_curvature", "motion_curvature"),
    *("frozen_largest", "exponent", "input_gradient"),
)
LINF = ("flips", "radius", "predicted_flips")


def logged(directory):
    rows = directory.metrics()
    return [entry for row in rows for entry in row["diagnostics"]]


def with_diagnostics(method="at", every=4, **overrides):
    fields: dict[str, Any] = {
        "diagnostics__every": every,
        "diagnostics__num_images": 4,
        "num_epochs": 2,
    }
    return tiny(method, **(fields | overrides))


@pytest.mark.parametrize("method", ["at", pytest.param("at_ensgd", marks=pytest.mark.slow)])
def test_a_run_with_diagnostics_ends_like_one_without(method, tmp_path):
    config = with_diagnostics(method)
    run(config, tmp_path / "with")
    plain = with_diagnostics(method, every=0)
    run(plain, tmp_path / "without")
    for name in ("last.ckpt", "selected.ckpt"):
        ours, theirs = (parts(tmp_path / f / name, plain) for f in ("with", "without"))
        assert_bitwise(ours, theirs)
    assert all("diagnostics" not in row for row in RunDirectory(tmp_path / "without").metrics())

    found = logged(RunDirectory(tmp_path / "with"))
    # 10 minibatches; with EntropySGD an update is n_in = 2 of them.
    assert [entry["step"] for entry in found] == [0, 4, 8]
    json.dumps(found, allow_nan=False)
    for entry in found:
        assert all(math.isfinite(entry[name]) for name in (*ALWAYS, *LINF)), entry
        # The parts add up, and the share is that of the projection.
        assert entry["total"] <= entry["parameter"] + entry["attack"] + 1e-6
        assert entry["quotient"] == pytest.approx(
            entry["frozen_curvature"] + entry["motion_curvature"], rel=1e-4, abs=1e-6
        )
        assert 0 <= entry["flips"] <= 1 and 0 < entry["radius"] and entry["update"] > 0
        assert abs(entry["quotient"]) <= entry["total"] * (1 + 1e-4)
        rate = 0.1 if entry["step"] < 4 else 0.01  # it drops at 0.4 of the run
        expected = None if method == "at_ensgd" else pytest.approx(entry["total"] * rate / 2)
        assert entry["stability"] == expected


@pytest.mark.slow
def test_l2_has_no_bounds_to_flip_between_and_a_resumed_run_logs_the_same(tmp_path, monkeypatch):
    config = with_diagnostics(threat__norm="l2", threat__eps=0.5, eval__eps=0.5)
    whole = tmp_path / "whole"
    run(config, whole)
    expected = logged(RunDirectory(whole))
    assert all(entry[name] is None for entry in expected for name in LINF)

    measure, calls = Diagnostics.measure, []

    def stops_once(self, *arguments):
        calls.append(arguments[0])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return measure(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Diagnostics, "measure", stops_once)
        with pytest.raises(KeyboardInterrupt):
            run(config, tmp_path / "stopped")
    run(config, tmp_path / "stopped")
    found = logged(RunDirectory(tmp_path / "stopped"))
    assert [entry["step"] for entry in found] == [entry["step"] for entry in expected]
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours["total"], theirs["total"], rtol=1e-6)


def test_devices_share_the_images_in_every_pass():
    assert jax.device_count() == 2

    def flops(num_images):
        config = tiny(diagnostics__every=4, diagnostics__num_images=num_images)
        task = load_task(config)
        run = build.build(config, task)
        module = build.build_model(config, task.dataset)
        params, stats = build.init_variables(module, jax.random.key(0), task.dataset.image_shape)
        found = Diagnostics(config, task, run)
        x = found.images
        calls = {
            "gradient": (found._gradient, x, params, stats),
            "input_gradient": (found._input_gradient, x, params, stats),
            "curved": (found._curved, params, x, params, stats),
            "loss": (jax.jit(found._variables_loss), x, {"params": params, "batch_stats": stats}),
        }
        lowered = {name: f.lower(*arguments) for name, (f, *arguments) in calls.items()}
        return {name: l.compile().cost_analysis()["flops"] for name, l in lowered.items()}

    whole, shared = flops(63), flops(64)  # 63 images cannot be divided
    for name in whole:
        assert 0.4 * whole[name] < shared[name] < 0.7 * whole[name], name


def test_off_is_the_default_and_older_runs_are_read(finished, tmp_path):
    run_at = finished("at")
    assert run_at.config.diagnostics.every == 0
    old = json.loads((run_at.directory.path / "config.json").read_text())
    del old["diagnostics"]
    (tmp_path / "config.json").write_text(json.dumps(old))
    assert RunDirectory(tmp_path).config().diagnostics.every == 0


def test_off_builds_nothing(monkeypatch):
    monkeypatch.setattr(Diagnostics, "__init__", lambda *_: pytest.fail("it is off"))
    nothing: Any = None
    assert Diagnostics.of(tiny(), nothing, nothing) is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"diagnostics__every": -1}, "config.diagnostics.every=-1 must be an integer >= 0"),
        ({"diagnostics__num_images": 0}, "config.diagnostics.num_images=0 must be"),
    ],
)
def test_misuse(fields, message):
    with pytest.raises(ValueError, match=message):
        tiny(**fields)
