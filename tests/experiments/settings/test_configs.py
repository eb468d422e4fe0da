"""Config files: a header that says what to type and what to expect, and plain locked values."""

import ast
import json
import shlex

import pytest

from experiments import settings
from experiments.cli import train as cli
from experiments.paper import table1, table2, table3
from tests.helpers.tiny_runs import ALL_METHODS, ROOT

FILES = sorted((ROOT / "experiments" / "configs").glob("*.py"))


def header(path):
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


def module(path):
    scope = {}
    exec(compile(path.read_text(encoding="utf-8"), path.name, "exec"), scope)
    return scope


def test_the_methods_of_the_paper_are_there():
    assert set(ALL_METHODS) <= {path.stem for path in FILES}


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_the_header_holds_a_command_that_works(path):
    lines = dict(
        line.split(":", 1) for line in header(path).splitlines() if ":" in line and line[0] != " "
    )
    command = shlex.split(lines["Command"].strip())
    assert command[:2] == ["python", "-m"]
    entry_point = command[2].removeprefix("experiments.")
    arguments = cli.parse(command[2:], entry_point)
    assert arguments.config.method == path.stem
    assert arguments.config.scale == "paper"


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_the_header_says_time_and_paper(path):
    assert "Time:" in header(path) and "Paper:" in header(path)


@pytest.mark.parametrize("method", ALL_METHODS)
def test_the_header_and_the_tables_agree_on_the_papers_number(method):
    tables = (table1.TABLE, table3.TABLE, table2.TABLE)
    found = next(table for table in tables if method in table.methods)
    mean, std = found.rows[0].paper[method]
    text = " ".join(header(ROOT / "experiments" / "configs" / f"{method}.py").split())
    assert f"{mean} +- {std} %" in text and f"Table {found.number}, CIFAR-10" in text
    assert "under AutoAttack" in text and "runs" in text and "checkpoint chosen on test" in text


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
@pytest.mark.parametrize("scale", [None, "", *settings.SCALES])
def test_a_config_is_locked_and_plain(path, scale):
    config = module(path)["get_config"](scale)
    assert config.is_locked and config.entropy.is_locked
    assert config.method == path.stem and config.scale == (scale or "paper")
    json.dumps(config.to_dict())
    with pytest.raises(AttributeError):
        config.learning_rat = 0.2
    with pytest.raises(TypeError):
        config.seed = "zero"


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_an_unknown_scale_is_refused(path):
    with pytest.raises(ValueError, match="scale='laptob' is not .* did you mean 'laptop'"):
        module(path)["get_config"]("laptob")
