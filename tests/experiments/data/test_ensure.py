"""Entry points fetch the data set that they lack, say so, and can be forbidden to."""

import pytest

from experiments import data
from experiments.cli import train as cli
from experiments.data import _fetch


@pytest.fixture
def fetched(monkeypatch):
    asked = []
    monkeypatch.setattr(_fetch, "fetch", lambda spec, folder, say: asked.append(spec.name))
    return asked


def test_missing_data_are_fetched_and_said(tmp_path, fetched, capsys):
    data.ensure("cifar10", tmp_path)
    assert fetched == ["cifar10"]
    assert "cifar10 is not in" in capsys.readouterr().out


def test_what_is_there_is_not_fetched(tmp_path, fetched):
    data.ensure("digits", tmp_path)
    (tmp_path / "cifar10-verified.npz").write_bytes(b"here")
    data.ensure("cifar10", tmp_path)
    assert not fetched


def test_fetching_can_be_forbidden(tmp_path, fetched):
    with pytest.raises(
        data.DataMissingError, match="Download it with: python -m experiments.data cif"
    ):
        data.ensure("cifar10", tmp_path, download=False)
    assert not fetched


@pytest.mark.parametrize(
    ("words", "allowed"), [([], True), (["--download=false"], False), (["--nodownload"], False)]
)
def test_the_command_line_says_whether(monkeypatch, tmp_path, words, allowed):
    asked = []
    monkeypatch.setattr(data, "ensure", lambda name, folder, download: asked.append(download))
    monkeypatch.setattr("sys.argv", ["cifar10", "--config=configs/at.py:smoke", *words])
    monkeypatch.setattr("experiments.run.environment.configure", lambda: None)
    monkeypatch.setattr("experiments.run.environment.split_cpu", lambda *_: None)
    cli.main("cifar10", run=lambda *arguments, **options: asked.append("ran"))
    assert asked == [allowed, "ran"]
