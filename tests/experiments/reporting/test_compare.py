"""The page that compares runs and models."""

import json
import shutil

import numpy as np
import pytest

from experiments import report
from experiments.reporting.compare import compare
from experiments.run.accuracy import with_interval
from experiments.run.directory import RunDirectory, write_json
from experiments.run.predictions import load_predictions
from tests.experiments.reporting.test_report import Page


@pytest.fixture
def runs(finished, tmp_path):
    """A finished run, and another whose seed, predictions, and accuracy differ."""
    for name in ("one", "two"):
        shutil.copytree(finished("at").directory.path, tmp_path / name)
    two = RunDirectory(tmp_path / "two")
    write_json(two.config_file, json.loads(two.config_file.read_text()) | {"seed": 7})
    found = json.loads(two.report_file.read_text())
    found["test"]["selected"]["robust"] = 12.0
    write_json(two.report_file, found)
    predictions, labels = load_predictions(two)
    right = predictions.adversarial == labels
    changed = np.where(np.arange(len(labels)) == np.flatnonzero(right)[0], -1, labels)
    kept = {"clean": labels, "robust": changed, "labels": labels}
    np.savez_compressed(two.path / "predictions-selected.npz", **kept)
    return tmp_path / "one", tmp_path / "two", int((~right).sum())


def test_two_runs(runs, tmp_path):
    one, two, wrong = runs
    path = compare([one, two], tmp_path / "pages" / "both.html")
    page = Page(path.read_text(encoding="utf-8"))
    words = page.words()
    for directory, robust in ((one, None), (two, 12.0)):
        found = json.loads((directory / "report.json").read_text())["test"]["selected"]
        robust = found["robust"] if robust is None else robust
        cells = f"{with_interval(found['clean'], 50)} {with_interval(robust, 50)} not run 50"
        assert cells in words
    links = [link for link in page.links if not link.startswith("data:")]
    assert links == ["../one/report.html", "../two/report.html"]
    assert all((path.parent / link).is_file() for link in links)
    assert f"AT, seed 0 1 AT, seed 7 {wrong}" in words
    p = 2 * (2 + wrong) / 2 ** (1 + wrong)  # two sides, at most one of 1 + wrong
    assert wrong > 1 and f"AT, seed 0 and AT, seed 7: p = {p:.1g}" in words
    assert "field AT, seed 0 AT, seed 7 seed 0 7" in words and words.count("optimizer") == 0
    [curves] = page.pictures()
    assert curves.shape[1] > 1000


def test_a_model_and_an_unfinished_run(runs, tmp_path):
    one, two, _ = runs
    (two / "report.json").unlink()
    found = json.loads((one / "report.json").read_text())["test"]["selected"]
    model = found | {"arch": "wrn34_10", "dataset": "digits", "attack": {"name": "autoattack"},
                     "robust": 44.0}  # fmt: skip
    write_json(tmp_path / "model.json", model)
    path = compare([tmp_path / "model.json", two], tmp_path / "page.html")
    words = Page(path.read_text(encoding="utf-8")).words()
    clean = with_interval(found["clean"], 50)
    assert f"wrn34_10, autoattack digits {clean} {with_interval(44.0, 50)} 50" in words
    assert "AT digits 7 3 of 3 not finished" in words and "what differs" not in words


def test_names_are_text(runs, tmp_path):
    one, two, _ = runs
    evil = "<script>alert(1)</script>"
    found = json.loads((one / "report.json").read_text())
    found["test"]["selected"]["classes"][0]["class"] = found["attack"] = evil
    write_json(one / "report.json", found)
    text = compare([one, two], tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<script" not in text and evil in Page(text).words()


def test_mistakes(runs, tmp_path):
    one, two, _ = runs
    with pytest.raises(ValueError, match="1 runs to compare; a page takes 2 to 7"):
        compare([one], tmp_path / "page.html")
    with pytest.raises(FileNotFoundError, match="nowhere is not a run directory"):
        compare([one, tmp_path / "nowhere"], tmp_path / "page.html")
    with pytest.raises(FileNotFoundError, match=r"nothing\.json does not exist"):
        compare([one, tmp_path / "nothing.json"], tmp_path / "page.html")
    with pytest.raises(ValueError, match="is not a report of python -m experiments.evaluate"):
        compare([one, one / "config.json"], tmp_path / "page.html")
    (two / "report.json").write_text('{"test": 3}')
    with pytest.raises(ValueError, match="is damaged"):
        compare([one, two], tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_the_command(runs, monkeypatch, capsys, tmp_path):
    one, two, _ = runs
    monkeypatch.setattr("experiments.run.environment.configure", lambda: None)
    page = tmp_path / "page.html"
    monkeypatch.setattr("sys.argv", ["report.py", str(one), str(two), f"--output={page}"])
    report.main()
    assert capsys.readouterr().out == f"written: {page}\n" and page.is_file()
    for arguments, message in (([], "no run given"), ([str(one), f"--output={page}"], "--output")):
        monkeypatch.setattr("sys.argv", ["report.py", *arguments])
        with pytest.raises(SystemExit) as exit_:
            report.main()
        assert exit_.value.code == 2 and message in capsys.readouterr().err
