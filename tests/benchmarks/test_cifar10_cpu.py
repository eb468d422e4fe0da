"""Paired comparisons against closed forms, and the tables that the records of runs give."""

import json

import numpy as np
import pytest

from benchmarks import _pairs, cifar10_cpu, readme_tables
from experiments import settings
from experiments.paper import table1
from experiments.paper.runs import Cell, Row
from experiments.run import accuracy
from tests.benchmarks.test_readme_tables import RUN


def test_verdicts_survive_packing():
    flags = np.random.default_rng(0).integers(2, size=1003).astype(bool)
    np.testing.assert_array_equal(_pairs.unpack(json.loads(json.dumps(_pairs.pack(flags)))), flags)


def test_the_bootstrap_has_the_width_of_the_binomial():
    """One seed: the deviation of the mean of n independent differences is known."""
    change = np.random.default_rng(1).choice([-1, 0, 1], p=[0.1, 0.7, 0.2], size=(1, 4000))
    low, high = _pairs.bootstrap(change, 2000)
    width = 2 * 1.96 * change.std() / np.sqrt(change.size)
    assert high - low == pytest.approx(width, rel=0.1)
    assert low < change.mean() < high


def test_the_bootstrap_feels_that_seeds_differ():
    """Seeds that disagree widen the interval, however many images there are."""
    change = np.repeat([[0.1], [0.0], [-0.1]], 5000, axis=1)
    low, high = _pairs.bootstrap(change, 2000)
    assert low < -0.06 and high > 0.06


@pytest.mark.parametrize(("ahead", "behind", "p"), [(5, 0, 2 / 32), (3, 3, 1.0), (0, 0, 1.0)])
def test_mcnemar_is_a_fair_coin(ahead, behind, p):
    correct = np.array([True] * ahead + [False] * behind + [True, False])
    other = np.array([False] * ahead + [True] * behind + [True, False])
    assert accuracy.mcnemar(correct, other) == pytest.approx(p)


def test_only_common_seeds_are_compared():
    flags = {"pgd": np.array([True, True, False, False])}
    worse = {"pgd": np.array([True, False, False, False])}
    correct = {("b", 0): flags, ("a", 0): worse, ("b", 1): flags}
    [pair] = _pairs.differences(correct, [("b", "a"), ("c", "a")], 10)
    assert pair["difference"] == 25.0 and [seed["seed"] for seed in pair["seeds"]] == [0]
    text = _pairs.to_markdown([pair], {"a": "A", "b": "B"})
    assert "| B - A | pgd | 4 | 1 | +25.00 [+0.00, +" in text


def records(folder, methods=("at", "at_ensgd"), seeds=2):
    for method in methods:
        for seed in range(seeds):
            correct = np.arange(8) < 4 + (method == "at_ensgd") + seed
            run = RUN | {"seed": seed, "dataset": "cifar10", "autoattack_images": 4}
            percent = 100 * correct.mean()
            run |= dict.fromkeys(("robust", "clean", "robust_last", "clean_last"), percent)
            packed = {name: _pairs.pack(correct) for name in ("clean", "pgd")}
            packed["autoattack"] = _pairs.pack(correct[:4])
            found = {"method": method, "run": run | {"autoattack": 50.0}, "correct": packed}
            row = dict.fromkeys(("train_robust", "selection_robust"), percent - 50)
            metrics = [row | {"epoch": n, "step": 10 * n, "seconds": 1.0 * n} for n in (1, 2, 3)]
            text = json.dumps(found | {"metrics": metrics, "environment": {}})
            (folder / f"{method}-seed{seed}.json").write_text(text)


def test_the_tables_come_from_the_records(tmp_path, monkeypatch):
    monkeypatch.setattr(cifar10_cpu, "RESULTS", tmp_path)
    records(tmp_path)
    assert "| AT+EnSGD - AT | pgd | 8 | 2 | +12.50" in cifar10_cpu.compare()
    table = json.loads((tmp_path / "table1.json").read_text())
    assert table["rows"][0]["cells"]["at_ensgd"]["robust"]["mean"] == pytest.approx(68.75)
    assert "AutoAttack on 4 images" in readme_tables.render(table1.TABLE, {"x.json": table})
    second = json.loads((tmp_path / "table3.json").read_text())
    assert second["table"] == 3 and "at_2nd_ensgd" in second["columns"]
    assert second["rows"][0]["cells"]["at_ensgd"] == table["rows"][0]["cells"]["at_ensgd"]
    curves = json.loads((tmp_path / "curves.json").read_text())
    assert curves["AT"]["n"] == 2 and curves["AT"]["selection_robust_max"] == [12.5] * 3
    # 10 minibatches of 64: PGD-10 and the update, forward and backward.
    assert curves["AT+EnSGD"]["passes"] == [n * 10 * 64 * 22 for n in (1, 2, 3)]
    assert (tmp_path / "curves.png").stat().st_size > 10_000


def test_trials_differ_in_what_is_chosen_and_see_other_images_than_the_runs():
    sizes = {len(trials) for trials in cifar10_cpu.TRIALS.values()}
    assert len(sizes) == 1
    for method, trials in cifar10_cpu.TRIALS.items():
        found = [
            settings.load_config(method, "cpu", "cifar10", **cifar10_cpu.TRIAL, **chosen)
            for chosen in trials
        ]
        fields = [dict(settings.flatten(config)) for config in found]
        differing = {name for name in fields[0] if len({str(f[name]) for f in fields}) > 1}
        chosen = set().union(*trials)
        # SGD's rate also fills that of EntropySGD's outer step, which SGD does not read.
        assert chosen <= differing <= chosen | {"entropy.learning_rate"}
        assert cifar10_cpu.TRIAL["seed"] not in range(10)


def test_scale_cpu_has_the_settings_that_won_the_trials():
    best = {}
    for path in (cifar10_cpu.RESULTS / "tuning").glob("*.json"):
        trial = json.loads(path.read_text())
        best.setdefault(trial["method"], []).append(
            (trial["selection_robust"][-1], trial["settings"])
        )
    assert set(best) == set(cifar10_cpu.TRIALS)
    for method, trials in best.items():
        assert len(trials) == 3
        config = dict(settings.flatten(settings.load_config(method, "cpu", "cifar10")))
        (_, chosen) = max(trials, key=lambda trial: trial[0])
        assert {name: config[name] for name in chosen} == chosen


@pytest.mark.slow
def test_a_run_is_recorded_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cifar10_cpu, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(cifar10_cpu, "AUTOATTACK_IMAGES", 4)
    row = Row("digits, smoke", "digits")
    monkeypatch.setattr(cifar10_cpu, "rows_at", lambda *_: (row,))
    monkeypatch.setattr(
        cifar10_cpu, "Cell", lambda row, scale, method, seed: Cell(row, "smoke", method, seed)
    )
    cifar10_cpu.run(["at"], 1, None)
    file = tmp_path / "results" / "at-seed0.json"
    found = json.loads(file.read_text())
    assert found["correct"]["pgd"]["images"] == 64 and found["run"]["autoattack_images"] == 4
    assert 100 * _pairs.unpack(found["correct"]["pgd"]).mean() == found["run"]["robust"]
    assert 100 * _pairs.unpack(found["correct"]["clean"]).mean() == found["run"]["clean"]
    assert 100 * _pairs.unpack(found["correct"]["autoattack"]).mean() == found["run"]["autoattack"]
    changed = file.stat().st_mtime_ns
    cifar10_cpu.run(["at"], 1, None)
    assert file.stat().st_mtime_ns == changed


def test_the_records_bear_the_verdicts_of_the_page():
    """What docs/results.md says in words about all of CIFAR-10."""
    read = lambda name: json.loads((cifar10_cpu.RESULTS / f"{name}.json").read_text("utf-8"))
    rows = lambda method, seed: read(f"{method}-seed{seed}")["metrics"]
    pairs = read("comparison")["pairs"]
    pair = {(p["method"], p["minus"], p["attack"]): p for p in pairs}
    for seed in range(3):
        # Faster between the warm-up and the first drop of the rate, and only there.
        ahead = [
            ours["selection_robust"] > theirs["selection_robust"]
            for ours, theirs in zip(rows("at_ensgd", seed), rows("at", seed), strict=True)
        ]
        assert ahead[2] and ahead[3]
        # Lower on training images, AWP lower than AT too.
        for lower, upper in (("at_ensgd", "at"), ("awp_ensgd", "awp"), ("awp", "at")):
            last = [rows(method, seed)[-1]["train_robust"] for method in (lower, upper)]
            assert last[0] < last[1]
        run = lambda method, seed=seed: read(f"{method}-seed{seed}")["run"]
        assert run("at_ensgd")["autoattack"] < run("at")["autoattack"]
    contains = lambda p: p["interval"][0] <= 0 <= p["interval"][1]
    for attack in ("pgd", "autoattack"):
        assert contains(pair["at_ensgd", "at", attack])
        assert contains(pair["awp", "at", attack])
        assert contains(pair["awp_ensgd", "awp", attack])
    assert pair["awp", "at", "clean"]["interval"][1] < 0
    for other in ("awp", "at_ensgd"):
        assert pair["awp_ensgd", other, "clean"]["interval"][1] < 0
    second = [p for p in pairs if "2nd" in p["method"]]
    assert len(second) == 6 and all(map(contains, second))
