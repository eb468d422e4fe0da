"""Figures 3 and 6: the runs behind each line, what is missing, the published curves."""

import json
import shlex
from pathlib import Path

import numpy as np
import pytest

from experiments import fig3, fig6, settings
from experiments.cli import train as cli
from experiments.paper import curves
from experiments.paper.figures import FIGURE3, FIGURE6
from experiments.reporting import curves as drawing
from experiments.reporting import reference_curves
from experiments.reporting.curves import _draw_reference, average, draw_curves
from experiments.reporting.passes import counted
from experiments.run.directory import RunDirectory, write_json
from tests.helpers.tiny_runs import tiny

LABELS = ["AT", "AT+EnSGD", "AWP(0.002)", "AWP(0.001)+EnSGD"]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("experiments.run.environment.configure", lambda: None)


def command(monkeypatch, figure, *arguments):
    monkeypatch.setattr("sys.argv", ["figure.py", *arguments])
    figure.main()


def refused(monkeypatch, capsys, figure, *arguments):
    with pytest.raises(SystemExit) as exit_:
        command(monkeypatch, figure, *arguments)
    assert exit_.value.code == 2
    return capsys.readouterr().err


def metrics(epochs, *, slope=1.0, offset=0.0, seconds=2.0):
    return [
        {
            "epoch": epoch,
            "step": 10 * epoch,
            "seconds": seconds * epoch,
            "train_loss": 1 / epoch,
            "train_robust": slope * epoch + offset,
            "train_clean": None,
            "selection_clean": None,
            "selection_robust": None if epoch == 1 else 2 * slope * epoch + offset,
        }
        for epoch in range(1, epochs + 1)
    ]


def fabricate(workdir, config, rows, *, is_finished=True):
    directory = RunDirectory(workdir)
    directory.open(config, needed_bytes=1)
    directory.write_metrics(rows)
    if is_finished:
        write_json(directory.report_file, {})
    return directory


def all_runs(figure, seeds=2, *, dataset="digits", scale="laptop", epochs=3):
    for member in curves.members(figure.lines, scale, dataset, None, seeds):
        number = figure.lines.index(member.line)
        rows = metrics(epochs, slope=number + 1.0, offset=member.cell.seed)
        fabricate(member.workdir(), member.config(), rows)


def data(tmp_path, name):
    return json.loads((tmp_path / "runs" / name / f"{name.split('-')[0]}.json").read_text())


def test_a_line_is_the_mean_over_seeds_and_its_band_their_range(monkeypatch, tmp_path, capsys):
    all_runs(FIGURE3)
    command(monkeypatch, fig3, "--scale=laptop", "--seeds=2")
    found = data(tmp_path, "fig3-digits-laptop")
    assert list(found["curves"]) == LABELS
    awp = found["curves"]["AWP(0.002)"]
    assert awp["n"] == 2 and awp["epoch"] == [1, 2, 3] and awp["seconds"] == [2.0, 4.0, 6.0]
    assert awp["train_robust_mean"] == [3.5, 6.5, 9.5]
    assert awp["selection_robust_min"] == [None, 12.0, 18.0]
    assert awp["selection_robust_max"] == [None, 13.0, 19.0]
    assert [run["seed"] for run in found["runs"]["AWP(0.002)"]] == [0, 1]
    assert found["missing"] == [] and found["evaluated_on"] == ["validation"]
    folder = tmp_path / "runs/fig3-digits-laptop"
    assert (folder / "fig3.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "fig3.pdf").read_bytes().startswith(b"%PDF")
    for name in ("fig3.png", "fig3.pdf", "fig3.json"):
        assert f"runs/fig3-digits-laptop/{name}" in capsys.readouterr().out or name != "fig3.png"


def test_missing_runs_are_an_error_that_lists_their_commands(monkeypatch, tmp_path, capsys):
    all_runs(FIGURE3, seeds=1)
    text = refused(monkeypatch, capsys, fig3, "--scale=laptop", "--seeds=2")
    assert text.startswith("error: 4 of the 8 runs for fig3 are missing")
    assert "--partial" in text and "--run" in text
    listed = [line.strip() for line in text.splitlines()[1:]]
    assert listed[0] == (
        "python -m experiments.digits --config=configs/at.py:laptop --config.seed=1"
    )
    assert len(listed) == 4 and not (tmp_path / "runs/fig3-digits-laptop").exists()


def test_what_exists_is_drawn_if_asked_for(monkeypatch, tmp_path, capsys):
    at, ensgd, *_ = curves.members(FIGURE3.lines, "laptop", "digits", None, 1)
    fabricate(at.workdir(), at.config(), metrics(3))
    fabricate(ensgd.workdir(), ensgd.config(), metrics(2), is_finished=False)
    command(monkeypatch, fig3, "--scale=laptop", "--seeds=1", "--partial")
    found = data(tmp_path, "fig3-digits-laptop")
    assert list(found["curves"]) == ["AT", "AT+EnSGD"]
    assert [run["finished"] for runs in found["runs"].values() for run in runs] == [True, False]
    assert len(found["missing"]) == 3 and ensgd.command() in found["missing"]
    assert ensgd.command() in capsys.readouterr().out


def test_nothing_at_all_is_an_error_too(monkeypatch, capsys):
    text = refused(monkeypatch, capsys, fig3, "--scale=laptop", "--seeds=1", "--partial")
    assert text.startswith("error: 4 of the 4 runs") and "configs/awp_ensgd.py:laptop" in text


def test_a_run_of_other_fields_is_refused(monkeypatch, capsys):
    all_runs(FIGURE3, seeds=1)
    [member, *_] = curves.members(FIGURE3.lines, "laptop", "digits", None, 1)
    config = member.config()
    config.learning_rate = 0.7
    write_json(RunDirectory(member.workdir()).config_file, config.to_dict())
    text = refused(monkeypatch, capsys, fig3, "--scale=laptop", "--seeds=1")
    assert "a different configuration (learning_rate=0.7 there" in text


@pytest.mark.parametrize(("dataset", "gamma"), [("cifar10", 0.005), ("cifar100", 0.007)])
@pytest.mark.parametrize("model", [None, "wrn34_10"])
def test_figure_6_adds_awp_at_the_gamma_of_entropy_sgd(dataset, gamma, model, tmp_path):
    *four, extra = curves.members(FIGURE6.lines, "paper", dataset, model, 1)
    assert [m.line for m in four] == list(FIGURE3.lines)
    assert extra.config().awp.gamma == gamma and extra.config().optimizer == "sgd"
    assert settings.label(extra.config()) == f"AWP({gamma:g})"
    assert four[2].config().awp.gamma == 0.01
    assert len({m.workdir() for m in (*four, extra)}) == 5
    assert settings.label(four[3].config()) == f"AWP({gamma:g})+EnSGD"


@pytest.mark.parametrize(("dataset", "scale"), [("imagenet", "paper"), ("cifar10", "cpu")])
def test_figure_6_has_one_run_of_awp_where_all_gammas_are_equal(dataset, scale):
    found = curves.members(FIGURE6.lines, scale, dataset, None, 2)
    assert [m.line for m in found] == 2 * list(FIGURE3.lines)


@pytest.mark.parametrize("model", [None, "wrn34_10"])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_listed_commands_train_the_runs_that_are_looked_for(model, seed):
    for member in curves.members(FIGURE6.lines, "paper", "svhn", model, 2):
        if member.cell.seed != seed:
            continue
        words = shlex.split(member.command())
        assert words[:3] == ["python", "-m", "experiments.svhn"]
        arguments = cli.parse(words[2:], "svhn")
        assert arguments.config.to_json(sort_keys=True) == member.config().to_json(sort_keys=True)
        assert arguments.workdir == member.workdir().resolve()


def test_missing_runs_are_trained_if_asked_for(monkeypatch, tmp_path):
    trained = []

    def train_and_evaluate(config, workdir, data_dir):
        trained.append((settings.label(config), config.seed, data_dir))
        fabricate(workdir, config, metrics(2))

    monkeypatch.setattr("experiments.paper.curves.train_and_evaluate", train_and_evaluate)
    [member, *_] = curves.members(FIGURE6.lines, "smoke", "digits", None, 1)
    fabricate(member.workdir(), member.config(), metrics(2))
    command(monkeypatch, fig6, "--scale=smoke", "--seeds=1", "--run", "--data-dir=there")
    assert trained == [(label, 0, Path("there")) for label in [*LABELS[1:], "AWP(0.001)"]]
    assert list(data(tmp_path, "fig6-digits-smoke")["curves"]) == [*LABELS, "AWP(0.001)"]
    assert RunDirectory("runs/digits-smoke/awp-gamma0.001/seed0").config().awp.gamma == 0.001


def test_given_run_directories_are_grouped_by_method(monkeypatch, tmp_path):
    for seed in range(2):
        fabricate(tmp_path / f"a{seed}", tiny("at", seed=seed), metrics(2, offset=seed))
    fabricate(tmp_path / "b", tiny("trades_awp_ensgd"), metrics(2), is_finished=False)
    names = ["a0", "a1", "b"]
    command(monkeypatch, fig3, "--workdir", *names, "--output=out")
    found = json.loads((tmp_path / "out/fig3.json").read_text())
    assert list(found["curves"]) == ["AT", "TRADES+AWP(0.005)+EnSGD"]
    assert found["curves"]["AT"]["train_robust_mean"] == [1.5, 2.5]


def test_one_label_is_one_configuration(monkeypatch, tmp_path, capsys):
    fabricate(tmp_path / "a", tiny("at"), metrics(2))
    fabricate(tmp_path / "b", tiny("at", learning_rate=0.5), metrics(2))
    text = refused(monkeypatch, capsys, fig3, "--workdir", "a", "b")
    assert "b and another run are both 'AT' but differ in config.learning_rate" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds=0", "--scale=laptop"], "--seeds=0"),
        (["--model=resnet", "--scale=laptop"], "--model='resnet'"),
        (["--workdir", "nowhere"], "nowhere is not a run directory"),
        (["--scale=large"], "is not one of paper, cpu, laptop, smoke"),
    ],
)
def test_mistakes(monkeypatch, capsys, arguments, message):
    assert message in refused(monkeypatch, capsys, fig3, *arguments)


def test_passes_are_in_the_unit_that_fits():
    for passes, unit, size in (
        (2e3, "thousands", 1e3),
        (5e6, "millions", 1e6),
        (2e9, "billions", 1e9),
    ):
        rows = [row | {"passes": passes} for row in metrics(1)]
        panel = draw_curves({"A": average([rows])}, title="t", evaluated_on="test").axes[2]
        assert panel.get_xlabel() == f"passes of images through the network, {unit}"
        assert panel.lines[0].get_xdata().tolist() == [passes / size]


def test_training_and_selection_images_have_panels_of_their_own():
    rows = counted(tiny("at"), metrics(2))
    drawn = draw_curves({"A": average([rows])}, title="t", evaluated_on="validation")
    titles = [panel.get_title(loc="left") for panel in drawn.axes]
    assert titles == [f"({letter}) {name} images" for letter, name in
                      zip("abcd", ("training", "validation") * 2, strict=True)]  # fmt: skip
    for panel, metric in zip(drawn.axes, ("train_robust", "selection_robust") * 2, strict=True):
        [line] = panel.lines
        measured = [row[metric] for row in rows if row[metric] is not None]
        assert measured and line.get_ydata().tolist() == measured


def test_more_lines_than_colours_are_refused():
    curves = average([counted(tiny("at"), metrics(1))])
    with pytest.raises(ValueError, match="8 lines to draw"):
        draw_curves({str(i): curves for i in range(8)}, title="t", evaluated_on="test")


# The published curves


def test_the_published_curves_lie_under_the_runs_that_they_are_of(monkeypatch, tmp_path):
    all_runs(FIGURE3, 1, dataset="cifar10", scale="paper", epochs=12)
    drawn = []
    monkeypatch.setattr(
        drawing, "_draw_reference", lambda *a, real=_draw_reference: drawn.append(real(*a))
    )
    command(monkeypatch, fig3, "--seeds=1", "--reference")
    found = data(tmp_path, "fig3-cifar10-paper")
    assert list(found["reference"]) == ["AT", "AWP(0.01)"] and len(drawn) == 2
    at = found["reference"]["AT"]
    assert at["epochs_done"][:3] == [1, 5, 10] and at["test_robust"][-1] == 43.8
    assert at["train_robust"][-1] == 81.0 and at["best"] == [52.79, 102]
    assert "AWP" in at["source"]


def test_a_reference_is_drawn_as_far_as_the_run_goes():
    curve = reference_curves.CURVES[0]
    rows = counted(tiny("at"), metrics(49))
    drawn = draw_curves(
        {"AT": average([rows])}, title="t", evaluated_on="test", reference={"AT": curve}
    )
    train, test = ([line for line in panel.lines if line.get_marker() in "o^"][0]
                   for panel in drawn.axes[:2])  # fmt: skip
    assert test.get_xdata().tolist() == [1, 5, 10]
    assert test.get_ydata().tolist() == [26.0, 35.5, 40.5]
    assert train.get_ydata().tolist() == [20.1, 32.5, 38.4]
    assert all(line.get_marker() == "None" for p in drawn.axes[2:] for line in p.lines)


def test_a_reference_that_fits_nothing_is_refused(monkeypatch, capsys):
    all_runs(FIGURE3, seeds=1)
    text = refused(monkeypatch, capsys, fig3, "--scale=laptop", "--seeds=1", "--reference")
    assert "--reference: no published curve" in text and "cifar100 preact_resnet18" in text


@pytest.mark.parametrize(
    "change",
    [
        {"width": 16},
        {"threat.norm": "l2"},
        {"eval.eps": 0.031},
        {"optimizer": "entropy_sgd"},
        {"objective": "trades"},
        {"awp.gamma": 0.005},
        {"dataset": "digits"},
        {"model": "small_convnet"},
    ],
)
def test_what_is_another_experiment_has_no_reference(change):
    config = settings.load_config("awp", "paper", "cifar10")
    assert reference_curves.find(config) is reference_curves.CURVES[1]
    for name, value in change.items():
        *path, leaf = name.split(".")
        (config[path[0]] if path else config)[leaf] = value
    assert reference_curves.find(config) is None


def test_the_published_numbers_hang_together():
    """The best accuracy is no less than that at any epoch shown, and AWP overfits less."""
    for curve in reference_curves.CURVES:
        assert len(curve.train_robust) == len(curve.test_clean) == len(curve.test_robust)
        if not curve.test_robust:
            continue
        assert len(curve.test_robust) == len(reference_curves.EPOCHS)
        assert curve.best[0] >= max(curve.test_robust) - 0.05
        assert all(np.array(curve.test_robust) <= np.array(curve.test_clean))
        assert curve.last == curve.test_robust[-1]
    pairs = zip(reference_curves.CURVES[::2], reference_curves.CURVES[1::2], strict=True)
    for plain, awp in pairs:
        assert plain[:2] == awp[:2] and (plain.awp, awp.awp) == (False, True)
        assert awp.best[0] > plain.best[0]
