"""Smoothness of trained networks: the committed data, its figure and its command."""

import json
import pathlib

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from theory.trained_smoothness import __main__ as trained_smoothness

COMMITTED = pathlib.Path(__file__).parents[2] / "benchmarks/results/trained-smoothness-digits"
RUNS = [(norm, method) for norm in ("l2", "linf") for method in ("at", "at_ensgd")]


def check(data, *, snapshots):
    assert sorted({(run["norm"], run["method"]) for run in data["runs"]}) == sorted(RUNS)
    for run in data["runs"]:
        assert len(run["rows"]) == snapshots
        for row in run["rows"]:
            assert row["largest_residual"] < 1e-9 or "unconverged" in row["kinds"]
            assert sum(row["kinds"].values()) == data["settings"]["images"]
            for measured, bound in zip(row["norms"], row["sharp_bounds"], strict=True):
                assert 0 <= measured <= bound * (1 + 1e-4)
            # (CURV): the motion of the attack only adds curvature.
            top = row["eigenvalues"]
            assert top["total"] >= top["frozen"] * (1 - 0.02) - 1e-6
            for secant in row["secants"]:
                assert secant["total"] <= secant["attack"] + secant["parameter"] + 1e-3
                assert 0 <= secant["switches"] <= 1 and 0 <= secant.get("flips", 0) <= 1


def test_the_committed_data_hold_together_and_can_be_drawn():
    data = json.loads((COMMITTED / "trained_smoothness.json").read_text(encoding="utf-8"))
    check(data, snapshots=len(trained_smoothness.FRACTIONS))
    figure = trained_smoothness.draw(data)
    assert [axes.get_title() != "" for axes in figure.axes] == [True] * 4 + [False] * 4
    for axes in figure.axes:
        for line in axes.get_lines():
            assert np.isfinite(line.get_ydata()).any()


def test_the_table_of_the_theory_page_is_that_of_the_data():
    data = json.loads((COMMITTED / "trained_smoothness.json").read_text(encoding="utf-8"))
    page = (COMMITTED.parents[2] / "docs" / "theory.md").read_text(encoding="utf-8")

    def mean(norm, method, pick):
        epochs, values = trained_smoothness.series(data, norm, method, pick)
        return values[:, epochs > 30].mean()

    row = lambda form, *picks: " | ".join(
        form.format(*(mean(norm, method, pick) for pick in picks)) for norm, method in RUNS
    )
    for line in (
        row("{:.2f}", lambda r: r["secants"][0]["parameter"]),
        row("{:.2f}", lambda r: r["secants"][0]["attack"]),
        row("{:.3g}", lambda r: r["secants"][1]["attack"]),
        row("{:.0%}", lambda r: r["secants"][0]["switches"]).replace("%", " %"),
    ):
        assert f"| {line} |" in page, line
    for norm, method in RUNS:
        values = [
            mean(norm, method, lambda r, n=n: r["eigenvalues"][n]) for n in ("frozen", "total")
        ]
        form = "{:.1f} / {:.0f}" if norm == "linf" else "{:.1f} / {:.1f}"
        assert form.format(*values) in page


@pytest.mark.slow
def test_command(tmp_path, monkeypatch):
    monkeypatch.setattr(trained_smoothness, "FRACTIONS", (0, 1))
    options = [f"--output={tmp_path}", "--epochs=1", "--seeds=1", "--images=2"]
    assert trained_smoothness.main(options) == 0
    data = json.loads((tmp_path / "trained_smoothness.json").read_text(encoding="utf-8"))
    check(data, snapshots=2)
    for suffix in (".png", ".pdf"):
        assert (tmp_path / f"trained_smoothness{suffix}").stat().st_size > 5000


def test_misuse(tmp_path, capsys):
    for option in ("--epochs=0", f"--output={tmp_path} --redraw"):
        with pytest.raises(SystemExit):
            trained_smoothness.main(option.split())
    assert "run once without --redraw" in capsys.readouterr().err
