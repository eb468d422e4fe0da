"""Every comparison in benchmarks/ runs, at tiny sizes, and writes what its tables need."""

import argparse
import json
import subprocess
import sys

import jax
import pytest

from benchmarks import (
    _report,
    _timing,
    batch_norm,
    entropy_sgd,
    fresh_clone,
    global_attacks,
    gpu,
    large,
    matrix_free,
    rates,
    reproduce,
    scaling,
    smoothness_speed,
    startup,
    streaming,
    summary,
)


def test_rivals_are_called_in_turn():
    order = []
    calls = {name: (lambda name=name: order.append(name)) for name in "ab"}
    times = _timing.alternate(calls, 3)
    assert "".join(order) == "ab" + "ab" + "ba" + "ab"
    assert {name: len(values) for name, values in times.items()} == {
        "a": 3,
        "b": 3,
        "a, first call": 1,
        "b, first call": 1,
    }


def test_ratios_are_of_neighbouring_calls():
    found = _timing.ratio({"a": [1.0, 10.0, 1.0], "b": [2.0, 20.0, 6.0]}, "a", "b")
    assert found == {"median": 2.0, "least": 2.0, "greatest": 6.0}


def test_the_tables_of_speeds_are_those_of_the_results(capsys):
    summary.main(["--check"])
    assert "out of date" not in capsys.readouterr().out
    names = [row[-1] for row in summary.rows()]
    assert "autoattack_cnn_a.json" in names
    with pytest.raises(ValueError, match="expected one <!-- speed -->"):
        summary.fill("no markers", "speed", "")


def test_a_command_is_timed_with_its_largest_process(tmp_path):
    folder = tmp_path / "clone"
    folder.mkdir()
    large = "b = bytearray(3 << 28)"
    # A small process asks: what it forks counts as large as itself.
    asks = (
        "import pathlib, subprocess, sys\nfrom benchmarks import fresh_clone\n"
        f'parent = \'import subprocess, sys; subprocess.run([sys.executable, "-c", "{large}"])\'\n'
        f"words = [sys.executable, '-c', parent]\n"
        f"print(*fresh_clone.timed(words, pathlib.Path({str(folder)!r})))"
    )
    done = subprocess.run([sys.executable, "-c", asks], capture_output=True, text=True, check=True)
    seconds, gib = map(float, done.stdout.split())
    assert seconds > 0
    assert 0.75 < gib < 1
    with pytest.raises(SystemExit, match="no such target"):
        fresh_clone.timed(["sh", "-c", "echo no such target; exit 2"], folder)
    (folder / "file").write_bytes(bytes(3_000_000))
    (folder / "again").symlink_to("file")
    assert fresh_clone.megabytes(tmp_path) == pytest.approx(3, abs=0.01)


@pytest.mark.slow
def test_the_scanned_chain_does_not_grow(tmp_path):
    path = tmp_path / "found.json"
    options = ["--width=2", "--batch_size=2", "--num_steps=1", "--n_in=2,6", "--repeats=1"]
    entropy_sgd.main([*options, f"--output={path}"])
    few, many = json.loads(path.read_text())["rows"]
    assert abs(many["instructions"] - few["instructions"]) < 0.01 * few["instructions"]
    assert few["ratio"]["median"] > 0


@pytest.mark.slow
def test_combined_statistics_are_as_accurate_as_two_passes_with_half_the_collectives():
    sizes = ["--batch_size=4", "--image_size=8", "--channels=4", "--means=0,1000"]
    found = batch_norm.main(sizes)
    variance = {
        (row["input_mean"], row["form"]): row["errors"]["variance"] for row in found["accuracy"]
    }
    for mean in (0.0, 1000.0):
        good = [variance[mean, form]["greatest"] for form in ("two passes", "combined")]
        assert max(good) < 1e-6
    assert variance[1000.0, "shifted, after 0 minibatches"]["least"] > 1e-2
    for way, number in found["collectives"]["two passes"].items():
        assert found["collectives"]["combined"][way] == number / 2
        assert found["collectives"]["shifted"][way] == number / 2


@pytest.mark.slow
def test_matrix_free_equals_dense():
    found = matrix_free.main(["--widths=", "--hidden=3"])
    [row] = found["perceptrons"]
    assert row["norm_matrix_free"] == pytest.approx(row["norm_dense"], rel=1e-6)


@pytest.mark.slow
def test_a_network_without_materialising_its_jacobian():
    [row] = matrix_free.main(["--widths=2", "--hidden=", "--samples=1", "--image_size=8"])[
        "networks"
    ]
    assert row["examples"][0]["kind"] in ("sphere", "interior", "degenerate", "unconverged")


@pytest.mark.slow
def test_the_gpu_script_runs_on_a_cpu():
    sizes = ["--width=2", "--batch_size=2", "--eval_batch_size=2", "--product=16", "--num_steps=1"]
    found = gpu.main([*sizes, "--repeats=1", "--precisions=float32,bfloat16"])
    assert len(found["networks"]) == 4
    for rows in found["networks"].values():
        assert all(row["images_per_second"] > 0 for row in rows.values())
        assert rows["training step"]["epoch_seconds"] > 0


@pytest.mark.slow
def test_scaling_draws_its_figure(tmp_path):
    path = tmp_path / "scaling.json"
    found = scaling.main(["--quick", "--repeats=1", f"--output={path}"])
    assert [len(points) for points in found["sweeps"].values()] == [2] * 9
    assert path.with_suffix(".png").stat().st_size > 10_000
    assert path.with_suffix(".pdf").exists()


@pytest.mark.slow
def test_attacks_on_large_images_beside_their_passes(tmp_path):
    path = tmp_path / "large_tiny.json"
    options = ["--networks=small", "--norms=linf", "--size=32", "--rows=2", "--num_steps=2"]
    found = large.main([*options, "--repeats=1", f"--output={path}"])
    passes = {row["attack"]: (row["forward"], row["backward"]) for row in found["rows"]}
    assert passes == {"APGD-CE": (3, 3), "FAB-T": (7, 2), "Square": (22, 0)}
    assert all(row["ratio"]["median"] > 0 < row["MiB an image"] for row in found["rows"])
    table = summary.render(tmp_path)["measures"]
    assert "Square, linf, two convolutions, 32x32 pixels, 2 a block" in table


@pytest.mark.slow
def test_a_warm_cache_compiles_less():
    found = startup.main(["--dataset=digits", "--scale=smoke", "--repeats=1"])
    (cold,), (warm,) = found["cold"], found["warm"]
    assert warm["compiled"] == 0 < cold["compiled"]
    assert set(found["seconds"]) == {"import jaxadv", "--help", "cold", "warm"}
    assert set(cold["seconds"]) == {"import", "data", "build", "first step", "next step"}


@pytest.mark.slow
def test_streaming_beside_the_device(tmp_path):
    path = tmp_path / "streaming_tiny.json"
    sizes = ["--width=2", "--num_images=64", "--batch_size=8", "--num_steps=1"]
    streaming.main([*sizes, "--call=1", "--repeats=1", f"--output={path}"])
    found = json.loads(path.read_text())
    assert found["states_are_bitwise_equal"]
    assert "against on the device" in summary.render(tmp_path)["measures"]


@pytest.mark.slow
def test_rates_count_the_operations_of_the_definition(tmp_path):
    path = tmp_path / "rates_tiny.json"
    sizes = ["--widths=2", "--batch_size=3", "--image_size=8", "--product=64", "--repeats=2"]
    rows = {row["what"]: row for row in rates.main([*sizes, f"--output={path}"])["rows"]}
    product = rows["product of matrices of 64 rows"]
    assert product["mflop"] == pytest.approx(2 * 64**3 / 1e6, rel=0.05)
    inside = (3 * 8 - 2) ** 2  # of the kernel's 9 x 64 places, those that are no padding
    convolution = rows["3x3 convolution, 2 channels, 8x8"]
    assert convolution["mflop"] == pytest.approx(3 * 2 * 2 * 2 * inside / 1e6, rel=0.05)
    passes = [rows[name]["mflop"] for name in list(rows)[-2:]]
    assert 1.8 < passes[1] / passes[0] < 2.2
    rate = product["gflops"]["jaxadv"]
    assert 0 < rate["least"] <= rate["median"] <= rate["greatest"]
    assert "PreActResNet-18 of width 2, forward, " in summary.render(tmp_path)["rates"]


@pytest.mark.slow
def test_global_attacks_continue_and_tell_proofs_from_gaps(tmp_path):
    path = tmp_path / "global_attacks.json"
    options = ["--dimensions=2", "--norms=linf,l1", "--activations=softplus", "--seeds=1"]
    options.append(f"--output={path}")
    rows = global_attacks.main([*options, "--limit=5"])["rows"]
    assert len(rows) == 4 and all(row["runs"][0]["proved"] for row in rows)
    assert all(0 <= row["runs"][0]["gap"] <= 1e-6 for row in rows)
    text = path.read_text()
    assert global_attacks.main([*options, "--limit=5"])["rows"] == rows
    assert path.read_text() == text
    open_gap = global_attacks.measure(rows[0], 0, 0.0, 1e-30)
    assert open_gap["gap"] > 0 and not open_gap["proved"]
    rows[0]["runs"] = [open_gap]
    path.write_text(json.dumps(json.loads(text) | {"rows": rows}))
    table = summary.render(tmp_path)["global attacks"]
    assert table.count("| 1 of 1: ") == 3 and table.count("| 0 of 1: ") == 1
    assert table.count(", gap ") == 1


@pytest.mark.slow
def test_the_speed_of_many_starts_is_measured_on_the_same_network(tmp_path):
    there = ["git", "-C", smoothness_speed.ROOT, "cat-file", "-e", "7295a5bfdca5"]
    if subprocess.run(there, check=False, capture_output=True).returncode:
        pytest.skip("the history is not here")
    sizes = ["--width=4", "--images=2", "--epochs=2", "--starts=4", "--repeats=2"]
    path = tmp_path / "smoothness_tiny.json"
    found = smoothness_speed.main([*sizes, f"--output={path}"])
    assert found["seconds"]["old"]["calls"] == found["seconds"]["new"]["calls"] == 2
    # Four starts and the other ends' candidates find what one start finds, or more.
    assert found["loss"]["new"] >= found["loss"]["old"] - 1e-6
    assert "one start (commit 7295a5b)" in summary.render(tmp_path)["speed"]


@pytest.mark.slow
def test_training_beside_pytorch(tmp_path):
    pytest.importorskip("torch")
    from benchmarks import training

    sizes = ["--width=2", "--batch_size=4", "--num_steps=1", "--repeats=1", "--no-compile"]
    path = tmp_path / "training_tiny.json"
    found = training.main([*sizes, f"--output={path}"])
    assert found["gradient_difference"] < 1e-5
    assert set(found["ratio"]) == {f"pytorch, {name}" for name in training.METHODS}
    assert summary.render(tmp_path)["speed"].count("\n| PyTorch | ") == 3


@pytest.fixture
def lenient():
    """Foolbox does not keep this suite's strict rules."""
    rules = {
        "jax_legacy_prng_key": "allow",
        "jax_debug_key_reuse": False,
        "jax_numpy_rank_promotion": "allow",
    }
    before = {name: jax.config.values[name] for name in rules}
    for name, value in rules.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.mark.slow
def test_pgd_beside_its_peers(lenient):
    for name in ("torch", "foolbox", "torchattacks"):
        pytest.importorskip(name)
    from benchmarks import pgd

    found = pgd.main(["--width=2", "--batch_size=4", "--num_steps=2", "--repeats=1"])
    assert set(found["ratio"]) == {"foolbox", "torchattacks"}


@pytest.mark.slow
def test_the_choices_of_the_main_job_change_no_result():
    options = ["--methods=at", "--minibatches=2", "--repeats=1"]
    apart = reproduce.main(options)["methods"]["at"]["parameters_apart"]
    assert apart.pop("one minibatch a call") == 0
    assert set(apart) == {"gradients of JAX", "one device"}
    assert max(apart.values()) < 1e-5


def test_recorded_commands_keep_relative_paths_only():
    options = argparse.Namespace(output="benchmarks/results/a.json", data="/home/name/data", n=3)
    recorded = _report.provenance(options)["options"]
    assert recorded == {"output": "benchmarks/results/a.json", "data": "data", "n": 3}
