"""The tables of README.md and docs/results.md are those of the committed results."""

import json

import pytest

from benchmarks import readme_tables
from experiments.paper import table1, table2, table3

RUN = {
    "model": "small_convnet",
    "width": None,
    "train_images": 1300,
    "epochs": 60,
    "attack": "PGD-20",
    "threat": "linf, eps 0.2",
    "selection": "validation",
    "test_images": 360,
    "commit": "abc",
    "device": "a CPU",
    "precision": "float32",
}


def cell(robust=None, *, n=3, autoattack=None, run=RUN):
    summary = lambda mean: mean and {"mean": mean, "std": 1.25 if n > 1 else None, "n": n}
    runs = [run] * n if robust else []
    last, clean = (robust - 10, robust + 20) if robust else (None, None)
    return {"runs": runs, "robust": summary(robust), "autoattack": summary(autoattack)} | {
        "robust_last": summary(last),
        "clean": summary(clean),
    }


def results(cells, dataset="digits", *, table=1, scale="laptop"):
    row = {"title": "t", "dataset": dataset, "attack": "PGD-20", "cells": cells, "paper": {}}
    return {"table": table, "scale": scale, "rows": [row]}


def cells_of(line):
    return [text.strip() for text in line.strip("|").split("|")]


def written(folder, name, result):
    (folder / name).mkdir(parents=True)
    path = folder / name / f"table{result['table']}.json"
    path.write_text(json.dumps(result), encoding="utf-8")


EMPTY = "".join(f"{n}\n<!-- table {n} -->\nold\n<!-- end of table {n} -->\n" for n in (1, 2, 3))


def test_the_committed_readme_is_up_to_date(monkeypatch, capsys):
    monkeypatch.setattr("experiments.run.environment.configure", lambda: None)
    monkeypatch.setattr("sys.argv", ["readme_tables.py", "--check"])
    readme_tables.main()
    pages = capsys.readouterr().out.splitlines()
    assert [line.endswith("is up to date") for line in pages] == [True, True]


def test_a_page_holds_some_of_the_tables(tmp_path):
    written(tmp_path, "table2-digits-laptop", results({"trades": cell(50.0)}, table=2))
    one = readme_tables.fill(EMPTY[EMPTY.index("2\n<") :], tmp_path, "../")
    assert "[benchmarks/results/table2-digits-laptop/table2.json](../benchmarks/" in one
    assert "table 1" not in one
    with pytest.raises(ValueError, match="or other table"):
        readme_tables.fill("nothing", tmp_path)


def test_rows_of_a_table():
    at = cell(50.0, autoattack=40.0)
    found = readme_tables.render(table1.TABLE, {"x.json": results({"at": at, "awp": cell()})})
    lines = found.splitlines()
    assert cells_of(lines[0])[1:] == ["AT", "AT+EnSGD", "AWP", "AWP+EnSGD"]
    assert [cells_of(line) for line in lines[2:6]] == [
        [
            "digits, small_convnet, 1,300 training images, 60 epochs, linf 0.2, PGD-20 (n=3)",
            *("50.0 ± 1.2", "", "", ""),
        ],
        ["digits, AutoAttack (n=3)", "40.0 ± 1.2", "", "", ""],
        ["digits, PGD-20, last checkpoint (n=3)", "40.0 ± 1.2", "", "", ""],
        ["digits, clean accuracy (n=3)", "70.0 ± 1.2", "", "", ""],
    ]
    assert cells_of(lines[6])[1:] == [
        "*48.0 ± 0.2*", "*49.2 ± 0.4*", "*49.9 ± 0.4*", "*50.5 ± 0.2*"
    ]  # fmt: skip
    assert lines[8].startswith("* [x.json](x.json): commit abc; a CPU; float32; 360 test images")


def test_a_cell_says_its_seeds_where_they_differ():
    run = RUN | {"threat": "linf, eps 0.031373", "model": "preact_resnet18", "width": 16}
    cells = {"at": cell(26.0, n=1, run=run), "at_ensgd": cell(27.0, n=2, run=run)}
    found = readme_tables.render(table1.TABLE, {"x.json": results(cells, "cifar10")})
    title, *numbers = cells_of(found.splitlines()[2])
    assert numbers == ["26.0 [21.8, 30.9] (n=1)", "27.0 ± 1.2 (n=2)", "", ""]
    assert title.startswith("cifar10, preact_resnet18 of width 16, ")
    assert title.endswith("linf 8/255, PGD-20") and "AutoAttack" not in found.split("*the")[0]


@pytest.mark.parametrize("table", [table1, table2, table3], ids=["1", "2", "3"])
def test_without_results_only_the_papers_row_stands_there(table):
    head, _, paper = readme_tables.render(table.TABLE, {}).splitlines()
    assert cells_of(head)[1:] == list(table.METHODS.values())
    numbers = [f"*{m} ± {s}*" for m, s in (table.TABLE.rows[0].paper[k] for k in table.METHODS)]
    assert cells_of(paper)[1:] == numbers


def test_files_are_found_and_the_text_round_them_is_kept(tmp_path):
    written(tmp_path, "table1-cifar10-laptop", results({"at": cell(30.0)}, "cifar10"))
    written(tmp_path, "table1-digits-laptop", results({"at": cell(50.0)}))
    written(tmp_path, "table3-digits-laptop", results({"at_2nd_ensgd": cell(60.0)}, table=3))
    text = readme_tables.fill(EMPTY, tmp_path)
    assert "old" not in text and text.startswith("1\n<!-- table 1 -->\n| ")
    first, second, third = text.split("<!-- end of table")[:3]
    assert 0 < first.index("| digits, ") < first.index("| cifar10, ")
    assert "benchmarks/results/table1-digits-laptop/table1.json" in first
    assert "60.0" in third and "60.0" not in first + second and "digits" not in second
    assert readme_tables.fill(text, tmp_path) == text


def test_trials_stand_under_their_rates():
    log = lambda method, rate, last: {
        "method": method, "settings": {"rate": rate}, "selection_images": 10,
        "selection_robust": [50.0, last],
    }  # fmt: skip
    logs = [log("at", 0.1, 20.0), log("at", 0.03, 30.0), log("at_ensgd", 0.1, 40.0)]
    head, _, at, ensgd = readme_tables.trials(logs, {"at": "A", "at_ensgd": "B"}).splitlines()
    assert cells_of(head) == ["PGD-20, % of 10 held-out images, n=1", "rate 0.03", "rate 0.1"]
    assert cells_of(at) == ["A", "30.0 [10.8, 60.3]", "20.0 [5.7, 51.0]"]
    assert cells_of(ensgd) == ["B", "", "40.0 [16.8, 68.7]"]
    logs.append(log("awp", 0.1, 50.0) | {"settings": {"awp.gamma": 0.005}})
    names = {"at": "A", "at_ensgd": "B", "awp": "C"}
    blank, head, _, awp = readme_tables.trials(logs, names).splitlines()[4:]
    assert not blank and cells_of(head)[1:] == ["gamma_A 0.005"]
    assert cells_of(awp) == ["C", "50.0 [23.7, 76.3]"]


def test_one_seed_has_no_spread():
    values = {f"{name}_{end}": [1.0, 2.0, 3.0] for name in ("selection_robust", "train_robust")
              for end in ("mean", "min", "max")}  # fmt: skip
    found = readme_tables.course({"AT": {"n": 1, "epoch": [1, 2, 3], **values}})
    assert cells_of(found.splitlines()[0])[0] == "robust accuracy, %, n=1"
    assert found.endswith("| training images, epoch 3 of 3 | 3.0 |")
    both = {
        "AT": {"n": 2, "epoch": [1, 2, 3], **values},
        "B": {"n": 1, "epoch": [1, 2, 3], **values},
    }
    lines = readme_tables.course(both).splitlines()
    assert cells_of(lines[0]) == ["robust accuracy, %, [least, greatest]", "AT, n=2", "B, n=1"]
    assert cells_of(lines[-1])[1:] == ["3.0 [3.0, 3.0]", "3.0"]


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("experiments.run.environment.configure", lambda: None)
    readme = tmp_path / "R.md"
    readme.write_text(EMPTY)
    arguments = ["readme_tables.py", f"--readme={readme}", f"--results={tmp_path}"]

    def command(*more):
        monkeypatch.setattr("sys.argv", [*arguments, *more])
        readme_tables.main()

    with pytest.raises(SystemExit) as exit_:
        command("--check")
    assert exit_.value.code == 2 and readme.read_text() == EMPTY
    assert "run python -m benchmarks.readme_tables" in capsys.readouterr().err
    command()
    command("--check")
    assert "is up to date" in capsys.readouterr().out
    readme.write_text("<!-- table 1 -->")
    with pytest.raises(SystemExit):
        command()
    assert "one <!-- table 1 --> followed by one" in capsys.readouterr().err
    written(tmp_path, "wrong", results({}, table=1))
    (tmp_path / "wrong" / "table1.json").rename(tmp_path / "wrong" / "table2.json")
    readme.write_text(EMPTY)
    with pytest.raises(SystemExit):
        command()
    assert "contains Table 1" in capsys.readouterr().err


def test_one_cpu_repeats_the_table_of_digits_and_another_reverses_the_lead():
    def accuracies(name):
        text = (readme_tables.ROOT / "benchmarks" / "results" / f"{name}.json").read_text("utf-8")
        [row] = [row for row in json.loads(text)["rows"] if row["dataset"] == "digits"]
        runs = {method: cell["runs"] for method, cell in row["cells"].items()}
        values = {
            method: [(run["robust"], run["autoattack"]) for run in found]
            for method, found in runs.items()
        }
        return values, {run["commit"] for found in runs.values() for run in found}

    shown, _ = accuracies("table1-digits-laptop/table1")
    one, commit = accuracies("other-cpu/digits_xeon")
    other, same = accuracies("other-cpu/digits")
    assert one == shown
    assert other != shown
    assert commit == same
    mean = lambda found, method: sum(run[1] for run in found[method]) / 3
    assert mean(one, "at_ensgd") > mean(one, "at")
    assert mean(other, "at_ensgd") < mean(other, "at")
