"""The list of models by name."""

import pathlib
import re

import pytest

from experiments import zoo


def listed(monkeypatch, *words):
    monkeypatch.setattr("experiments.run.environment.configure", lambda: None)
    monkeypatch.setattr("sys.argv", ["zoo.py", *words])
    zoo.main()


def test_filters_and_reasons(monkeypatch, capsys):
    words = ("--dataset=imagenet", "--threat=Linf", "--architecture=swin")
    listed(monkeypatch, *words, "--loads=false")
    *lines, last = capsys.readouterr().out.splitlines()[1:]
    assert last == "9 of 165 entries; robustbench 1.1.1" and len(lines) == 9
    assert all("Swin" in line and " no " in line and "no network for" in line for line in lines)
    listed(monkeypatch, *words, "--loads=true")
    assert capsys.readouterr().out.splitlines()[1:] == ["0 of 165 entries; robustbench 1.1.1"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--architecture=widresnet"], "architecture='widresnet' is in no name .*WideResNet-"),
        (["--output=page.md"], "--output=page.md is of --coverage; give that too"),
    ],
)
def test_what_is_refused(words, message, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        listed(monkeypatch, *words)
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.slow
def test_the_page_of_the_documentation_is_current(monkeypatch, capsys):
    listed(monkeypatch, "--coverage")
    page = pathlib.Path(__file__).parents[2] / "docs" / "zoo.md"
    assert capsys.readouterr().out == page.read_text(encoding="utf-8")
