"""The tables: means over the runs that exist, the paper's numbers marked, missing commands."""

import json
import os
import shlex
import statistics

import pytest

from experiments import settings
from experiments import table1 as entry
from experiments import table2 as entry2
from experiments import table3 as entry3
from experiments.cli import train as cli
from experiments.paper import runs, table1, table2, table3
from experiments.reporting.curves import training_curves
from experiments.run.directory import RunDirectory, write_json
from tests.helpers.tiny_runs import ALL_METHODS, load, tiny


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("experiments.run.environment.configure", lambda: None)


TWO = "--methods=at,at_ensgd"


def command(monkeypatch, *arguments, table=entry):
    monkeypatch.setattr("sys.argv", ["table.py", *arguments])
    table.main()


def cell(method, seed, *, scale="laptop", dataset="digits", model=None):
    return runs.Cell(runs.Row("", dataset, model), scale, method, seed)


def fabricate(
    method,
    seed,
    robust,
    clean,
    *,
    scale="laptop",
    dataset="digits",
    last=10.0,
    model=None,
    autoattack=None,
):
    """A finished run directory, written by hand."""
    found = cell(method, seed, scale=scale, dataset=dataset, model=model)
    config, directory = found.config(), RunDirectory(found.workdir())
    directory.open(config, needed_bytes=1)
    directory.write_metrics(
        [
            {
                "epoch": epoch,
                "step": 10 * epoch,
                "seconds": 1.5 * epoch + seed,
                "train_robust": 10.0 * epoch,
                "selection_robust": None if epoch == 1 else 9.0 * epoch + seed,
            }
            for epoch in (1, 2, 3)
        ]
    )
    test = lambda robust, clean: {"robust": robust, "clean": clean, "images": 360, "classes": []}
    report = {
        "dataset": dataset,
        "method": method,
        "scale": scale,
        "seed": seed,
        "model": config.model,
        "threat": "linf, eps 0.15",
        "attack": "PGD-20",
        "precision": "float32",
        "selection": "validation",
        "selected_epoch": 2,
        "last_epoch": 3,
        "minibatch_gradients": 30,
        "train_seconds": 4.5 + seed,
        "test": {"selected": test(robust, clean), "last": test(robust - last, clean + 1)},
        "data": {"train": 1300},
        "environment": directory.environment()[-1],
    }
    if autoattack is not None:
        write_json(directory.autoattack_file("selected"), test(autoattack, clean))
    write_json(directory.report_file, report)
    return directory


def cells(line):
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def row(markdown, start):
    [line] = [line for line in markdown.splitlines() if line.startswith(f"| {start}")]
    return cells(line)[1:]


def test_means_and_deviations(monkeypatch, tmp_path):
    for seed, (robust, clean) in enumerate([(50.0, 90.0), (53.0, 92.0)]):
        fabricate("at", seed, robust, clean)
    fabricate("at_ensgd", 1, 61.0, 95.0)
    command(monkeypatch, "--scale=laptop", "--seeds=2", "--no-run", TWO)
    output = tmp_path / "runs/table1-digits-laptop"
    table = json.loads((output / "table1.json").read_text())
    [found] = table["rows"]
    at, ensgd = found["cells"]["at"], found["cells"]["at_ensgd"]
    assert at["robust"] == {"mean": 51.5, "std": pytest.approx(statistics.stdev([50, 53])), "n": 2}
    assert at["clean"]["mean"] == 91.0 and at["robust_last"]["mean"] == 41.5
    assert ensgd["robust"] == {"mean": 61.0, "std": None, "n": 1}
    assert [run["seed"] for run in at["runs"]] == [0, 1]
    facts = {"width": None, "train_images": 1300, "epochs": 3, "attack": "PGD-20"}
    assert at["runs"][0].items() >= facts.items()
    markdown = (output / "table1.md").read_text()
    assert row(markdown, "**digits, small_convnet, PGD-20** (laptop)") == [
        "51.5 ± 2.1 (n=2)",
        "61.0 [56.0, 66.0] (n=1)",
    ]
    assert row(markdown, "robust, last checkpoint") == [
        "41.5 ± 2.1 (n=2)",
        "51.0 [46.0, 56.2] (n=1)",
    ]
    assert row(markdown, "clean, selected checkpoint") == [
        "91.0 ± 1.4 (n=2)",
        "95.0 [92.2, 96.8] (n=1)",
    ]
    assert row(markdown, "minibatch gradients") == ["30", "30"]
    text = "accuracy on validation images (PGD-20, linf, eps 0.15, 360 test images)"
    assert text in markdown


def test_the_papers_numbers_are_marked_as_the_papers(monkeypatch, tmp_path):
    fabricate("at", 0, 50.0, 90.0)
    command(monkeypatch, "--scale=laptop", "--seeds=1", "--no-run", TWO)
    markdown = (tmp_path / "runs/table1-digits-laptop/table1.md").read_text()
    # Kanai et al., Table 1.
    assert row(markdown, "*the paper's: CIFAR10, PreActResNet-18, AutoAttack*") == [
        "*48.0 ± 0.2*",
        "*49.2 ± 0.4*",
    ]
    assert row(markdown, "*the paper's: CIFAR10, WRN-34-10") == ["*51.9 ± 0.5*", "*53.3 ± 0.3*"]
    assert row(markdown, "*the paper's: SVHN") == ["*53.1 ± 0.6*", "*59.1 ± 0.4*"]
    assert row(markdown, "*the paper's: CIFAR100") == ["*27.66 ± 0.04*", "*28.69 ± 0.03*"]
    # Whatever is not in italics was measured here.
    ours = [line for line in markdown.splitlines() if line.startswith("| ") and "*the" not in line]
    for mean, std in [v for row in table1.TABLE.rows for v in row.paper.values()]:
        assert not any(f"{mean} ± {std}" in line for line in ours)
    assert "Rows in italics are the paper's own numbers" in markdown


def test_cells_that_were_not_run_are_empty(monkeypatch, tmp_path, capsys):
    command(monkeypatch)
    markdown = (tmp_path / "runs/table1-paper/table1.md").read_text()
    for paper in table1.TABLE.rows:
        assert row(markdown, f"**{paper.title}** (paper)") == ["", "", "", ""]
    assert markdown.strip() in capsys.readouterr().out
    assert [
        path.name for path in (tmp_path / "runs/table1-paper").iterdir() if "cur" in path.name
    ] == []
    table = json.loads((tmp_path / "runs/table1-paper/table1.json").read_text())
    first = table["rows"][0]["cells"]["at"]
    assert first["robust"] is None and first["autoattack"] is None and first["runs"] == []
    assert len(table["missing"]) == len(set(table["missing"])) == 4 * 4 * 3


@pytest.mark.parametrize(
    ("scale", "dataset"), [("paper", "cifar10"), ("laptop", "digits"), ("laptop", "cifar10")]
)
def test_missing_runs_are_listed_as_commands_that_make_them(monkeypatch, tmp_path, scale, dataset):
    fabricate("at", 1, 50.0, 90.0, scale=scale, dataset=dataset)
    command(monkeypatch, f"--scale={scale}", f"--dataset={dataset}", "--no-run", "--seeds=2", TWO)
    markdown = (tmp_path / f"runs/table1-{dataset}-{scale}/table1.md").read_text()
    commands = [line.strip() for line in markdown.splitlines() if line.startswith("    python")]
    judging = [text for text in commands if "experiments.evaluate" in text]
    commands = [text for text in commands if text not in judging]
    expected = [("at", 0, None), ("at_ensgd", 0, None), ("at_ensgd", 1, None)]
    if scale == "paper":  # the row of the wide network too
        expected += [(method, seed, "wrn34_10") for method in ("at", "at_ensgd") for seed in (0, 1)]
    assert len(commands) == len(expected)
    for text, (method, seed, model) in zip(commands, expected, strict=True):
        python, m, module, *arguments = shlex.split(text)
        assert (python, m, module) == ("python", "-m", f"experiments.{dataset}")
        parsed = cli.parse([module, *arguments], dataset)
        wanted = cell(method, seed, scale=scale, dataset=dataset, model=model)
        assert parsed.config.to_json() == wanted.config().to_json()
        assert parsed.workdir == tmp_path / wanted.workdir()
        assert parsed.config.model == (model or load(method, scale, dataset).model)
    # All cells of rows that the paper fills by AutoAttack, the trained one too.
    assert len(judging) == (8 if scale == "paper" else 0)
    for text in judging:
        *_, workdir, attack = shlex.split(text)
        assert attack == "--attack=autoattack" and workdir.startswith("--workdir=runs/cifar10-")


def test_every_cell_has_a_folder_of_its_own():
    """Tables 1 and 3 share their runs; nothing else shares a folder."""
    folders = {}
    for table in (table1.TABLE, table2.TABLE, table3.TABLE):
        for paper in table.rows:
            for method in table.methods:
                found = runs.Cell(paper, "paper", method, 0)
                fields = (paper.dataset, found.config().model, method)
                assert folders.setdefault(found.workdir(), fields) == fields
    assert len(folders) == len(set(folders.values())) == 4 * 6 + 5


# The tables themselves


def test_the_papers_tables():
    """The tables of formulas F.1."""
    first = """
        48.0 0.2 49.2 0.4 48.93 0.09 49.9 0.4 50.5 0.2 50.4 0.3
        51.9 0.5 53.3 0.3 53.5 0.2 53.2 0.3 54.72 0.05 54.9 0.2
        53.1 0.6 59.1 0.4 59.3 0.1 59.3 0.1 59.91 0.09 59.9 0.1
        27.66 0.04 28.69 0.03 28.94 0.05 30.95 0.07 30.9 0.1 30.7 0.1"""
    second = "52.9 0.3 53.4 0.1 55.6 0.4 55.8 0.3 56.3 0.1"
    for table, text in ((table3.TABLE, first), (table2.TABLE, second)):
        numbers = [float(word) for word in text.split()]
        found = [x for line in table.rows for m in table.methods for x in line.paper[m]]
        assert found == numbers
    for short, long in zip(table1.TABLE.rows, table3.TABLE.rows, strict=True):
        assert short.paper == {m: long.paper[m] for m in table1.METHODS}
        assert short[:4] == long[:4]
    names = [(line.dataset, line.model, line.attack) for line in table1.TABLE.rows]
    assert names == [
        ("cifar10", None, "AutoAttack"),
        ("cifar10", "wrn34_10", "AutoAttack"),
        ("svhn", None, "PGD-20"),
        ("cifar100", None, "PGD-20"),
    ]
    assert {*table1.METHODS, *table2.METHODS, *table3.METHODS} == set(ALL_METHODS)


def test_autoattack_stands_in_a_row_of_its_own(monkeypatch, tmp_path):
    """A row of the paper under AutoAttack is filled by AutoAttack only."""
    for seed, strong in enumerate((45.0, None)):
        fabricate(
            "at", seed, 50.0 + seed, 80.0, scale="paper", dataset="cifar10", autoattack=strong
        )
    fabricate("at_ensgd", 0, 52.0, 81.0, scale="paper", dataset="cifar10", model="wrn34_10")
    command(monkeypatch, "--dataset=cifar10", TWO)
    markdown = (tmp_path / "runs/table1-cifar10-paper/table1.md").read_text()
    start = "**cifar10, preact_resnet18, "
    assert row(markdown, start + "PGD-20** (paper)") == ["50.5 ± 0.7 (n=2)", ""]
    assert row(markdown, start + "AutoAttack** (paper)") == ["45.0 [39.9, 50.2] (n=1)", ""]
    assert row(markdown, "**cifar10, wrn34_10, PGD-20**") == ["", "52.0 [46.8, 57.1] (n=1)"]
    assert row(markdown, "**cifar10, wrn34_10, AutoAttack**") == ["", ""]
    assert row(markdown, "AutoAttack, selected checkpoint") == ["45.0 [39.9, 50.2] (n=1)", ""]
    assert (tmp_path / "runs/table1-cifar10-paper/curves-2.png").is_file()


@pytest.mark.parametrize("table", [entry2, entry3], ids=["2", "3"])
def test_the_other_tables_on_digits(monkeypatch, tmp_path, table, capsys):
    method = list(table.TABLE.methods)[-1]
    fabricate(method, 0, 61.0, 95.0)
    command(monkeypatch, "--scale=laptop", "--seeds=1", "--no-run", table=table)
    name = f"table{table.TABLE.number}"
    folder = tmp_path / f"runs/{name}-digits-laptop"
    markdown = (folder / f"{name}.md").read_text()
    expected = [""] * (len(table.TABLE.methods) - 1) + ["61.0 [56.0, 66.0] (n=1)"]
    assert row(markdown, "**digits, small_convnet, PGD-20** (laptop)") == expected
    for paper in table.TABLE.rows:
        values = [f"*{mean} ± {std}*" for mean, std in paper.paper.values()]
        assert sorted(row(markdown, f"*the paper's: {paper.title}*")) == sorted(values)
    capsys.readouterr()
    command(monkeypatch, f"--from-json={folder / name}.json", table=table)
    assert capsys.readouterr().out == markdown


def test_figures_and_their_data_are_written(monkeypatch, tmp_path):
    fabricate("at", 0, 50.0, 90.0)
    fabricate("at", 1, 53.0, 92.0)
    fabricate("at_ensgd", 0, 61.0, 95.0)
    command(monkeypatch, "--scale=laptop", "--no-run", f"--output={tmp_path / 'out'}", TWO)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("table1.md", "table1.json", "curves.png", "curves.pdf", "curves.json")
    }
    assert (tmp_path / "out/curves.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "out/curves.pdf").read_bytes().startswith(b"%PDF")
    data = json.loads((tmp_path / "out/curves.json").read_text())
    at = data["AT"]
    assert at["n"] == 2 and at["epoch"] == [1, 2, 3]
    assert at["selection_robust_mean"] == [None, 18.5, 27.5]
    assert at["selection_robust_min"][2] == 27.0 and at["selection_robust_max"][2] == 28.0
    assert data["AT+EnSGD"]["n"] == 1


def test_a_run_of_other_fields_is_no_cell(monkeypatch, capsys):
    """What stands in the table's folder has to be what the table says it is."""
    directory = fabricate("at", 0, 50.0, 90.0)
    config = json.loads(directory.config_file.read_text())
    config["num_epochs"] = 1
    write_json(directory.config_file, config)
    with pytest.raises(SystemExit) as exit_:
        command(monkeypatch, "--scale=laptop", "--no-run", "--seeds=1", TWO)
    assert exit_.value.code == 2
    assert "a different configuration (num_epochs=1 there; 1 different)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--seeds=0", "--seeds=0 must be an integer >= 1"),
        ("--jobs=0", "--jobs=0 must be an integer >= 1"),
        ("--methods=at,sgd", "'sgd' is not one of at, at_ensgd"),
        ("--scale=tiny", "--scale='tiny' is not one of"),
        ("--scales=laptop", "unknown option --scales; did you mean --scale?"),
    ],
)
def test_mistakes(monkeypatch, capsys, argument, message):
    with pytest.raises(SystemExit) as exit_:
        command(monkeypatch, argument)
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


# From nothing to a table


def test_it_trains_what_is_missing_and_skips_what_exists(monkeypatch, tmp_path, capsys):
    configs = {method: tiny(method) for method in ("at", "at_ensgd")}
    monkeypatch.setattr(settings, "load_config", lambda method, *_, **__: configs[method])
    monkeypatch.setattr("experiments.run.train.describe_report", lambda report: "done")
    command(monkeypatch, "--scale=smoke", "--seeds=1", "--methods=at")
    assert "[1/1] AT on digits, seed 0" in capsys.readouterr().out
    report = tmp_path / "runs/digits-smoke/at/seed0/report.json"
    first = report.stat().st_mtime_ns
    command(monkeypatch, "--scale=smoke", "--seeds=1", TWO)
    out = capsys.readouterr().out
    assert "1 of 2 runs are already finished" in out and "[1/1] AT+EnSGD on digits, seed 0" in out
    assert report.stat().st_mtime_ns == first
    table = json.loads((tmp_path / "runs/table1-digits-smoke/table1.json").read_text())
    for method in ("at", "at_ensgd"):
        [run] = table["rows"][0]["cells"][method]["runs"]
        found = json.loads((tmp_path / run["workdir"] / "report.json").read_text())
        assert run["robust"] == found["test"]["selected"]["robust"]
        assert run["robust_last"] == found["test"]["last"]["robust"]
        assert run["minibatch_gradients"] == 15
    assert table["missing"] == []
    assert (tmp_path / "runs/table1-digits-smoke/curves.png").stat().st_size > 10_000


def test_autoattack_runs_where_it_is_missing(monkeypatch, tmp_path, capsys):
    for method, strong in (("at", None), ("at_ensgd", 40.0)):
        fabricate(method, 0, 50.0, 90.0, autoattack=strong)
    asked = []

    def judge(workdir, **options):
        asked.append((workdir, options["attack"]))
        found = {"robust": 41.5, "images": 360, "seconds": {"square": 2.0}, "warnings": ["odd"]}
        write_json(RunDirectory(workdir).autoattack_file("selected"), found)
        return found

    monkeypatch.setattr("experiments.paper.runs.evaluate", judge)
    command(monkeypatch, "--scale=laptop", "--no-run", "--seeds=2", TWO, "--autoattack")
    assert asked == [(cell("at", 0).workdir(), "autoattack")]
    markdown = (tmp_path / "runs/table1-digits-laptop/table1.md").read_text()
    assert row(markdown, "AutoAttack, selected checkpoint") == [
        "41.5 [36.4, 46.5] (n=1)",
        "40.0 [35.1, 45.1] (n=1)",
    ]
    text = capsys.readouterr().out
    assert "AutoAttack: AT on digits, seed 0: 41.50 % of 360 images, 2 s" in text
    assert "warning: odd" in text


@pytest.mark.slow
def test_the_smoke_table(monkeypatch, tmp_path):
    command(monkeypatch, "--scale=smoke", "--seeds=1")
    table = json.loads((tmp_path / "runs/table1-digits-smoke/table1.json").read_text())
    config = settings.load_config("at", "smoke", "digits")
    steps = config.num_epochs * -(-config.train_size // config.batch_size)
    for method in table1.METHODS:
        [run] = table["rows"][0]["cells"][method]["runs"]
        assert run["minibatch_gradients"] == steps
        assert 0 <= run["robust"] <= run["clean"] <= 100


def test_all_columns_are_the_same_experiment():
    """All methods of Table 1 get equal numbers of minibatch gradients on equal data."""
    method_fields = {"method", "optimizer", "awp.enabled", "awp.gamma"}
    for dataset in settings.DEFAULTS:
        for scale in settings.DEFAULTS[dataset]:
            first, *others = (
                dict(settings.flatten(load(m, scale, dataset))) for m in table1.METHODS
            )
            for other in others:
                different = {name for name in first if first[name] != other[name]}
                # On digits AWP starts after a warm-up: see recipes.AWP_WARMUP.
                allowed = {"entropy.n_in"} | ({"warmup_epochs"} if dataset == "digits" else set())
                assert different <= method_fields | allowed


def test_curves_of_unequal_length_are_cut_to_what_all_have(tmp_path):
    rows = lambda length: [
        {
            "epoch": e,
            "seconds": float(e),
            "passes": 9.0 * e,
            "train_robust": 1.0 * e,
            "selection_robust": 2.0 * e,
        }
        for e in range(1, length + 1)
    ]
    written = training_curves(
        {"A": [rows(3), rows(5)]}, tmp_path / "c", title="t", evaluated_on="test"
    )
    assert [path.name for path in written] == ["c.png", "c.pdf", "c.json"]
    data = json.loads((tmp_path / "c.json").read_text())["A"]
    assert data["epoch"] == [1, 2, 3] and data["seconds"] == [1.0, 2.0, 3.0]
    assert data["passes"] == [9.0, 18.0, 27.0]
    assert data["selection_robust_mean"] == [2.0, 4.0, 6.0]


@pytest.mark.slow
def test_side_by_side_is_the_same_table(monkeypatch, tmp_path, capsys):
    arguments = ["--scale=smoke", "--seeds=2", "--methods=at"]
    found = {}
    for jobs in (1, 2):
        folder = tmp_path / str(jobs)
        folder.mkdir()
        monkeypatch.chdir(folder)
        command(monkeypatch, *arguments, f"--jobs={jobs}")
        rows = json.loads((folder / "runs/table1-digits-smoke/table1.json").read_text())["rows"]
        runs_of = rows[0]["cells"]["at"]["runs"]
        found[jobs] = [(run["seed"], run["robust"], run["clean"]) for run in runs_of]
    assert found[1] == found[2] and len(found[1]) == 2
    assert "training 2 runs, 2 side by side" in capsys.readouterr().out


def test_side_by_side_is_for_small_images_on_cpu(monkeypatch):
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert runs.usual_jobs("digits") == min(cores, 4)
    assert runs.usual_jobs("cifar10") == 1
    monkeypatch.setattr("jax.default_backend", lambda: "gpu")
    assert runs.usual_jobs("digits") == 1
