"""The command ``jaxadv``."""

import os
import subprocess
import sys

import pytest

import jaxadv
from experiments.cli import console
from experiments.cli.help.write import programs


def run(*words):
    code = "from experiments.cli.console import main; main()"
    command = [sys.executable, "-c", code, *words]
    return subprocess.run(command, capture_output=True, text=True, env=dict(os.environ))


def test_a_command_is_the_program_of_its_name():
    done = run("report", "--workdir=nowhere")
    assert done.returncode == 2 and done.stderr.startswith("error: ") and "nowhere" in done.stderr
    helped = run("evaluate", "--help")
    assert helped.returncode == 0 and "--attack" in helped.stdout
    first, second = helped.stdout.splitlines()[:2]
    assert first.startswith("usage: jaxadv evaluate [-h]") and "jaxadv zoo" in helped.stdout
    assert "python -m" not in helped.stdout and second.index("[") == first.index("[")


def test_all_commands_exist():
    assert {f"experiments.{name}" for name in console.COMMANDS} <= set(programs())


def test_usage_and_mistakes(monkeypatch, capsys):
    for words, status, text in [
        ([], 2, "usage: jaxadv COMMAND"),
        (["--help"], 0, "evaluate"),
        (["evalute"], 2, "error: unknown command 'evalute'; did you mean evaluate?\n"),
        (["x"], 2, "error: unknown command 'x'; use one of evaluate, zoo, "),
    ]:
        monkeypatch.setattr(sys, "argv", ["jaxadv", *words])
        with pytest.raises(SystemExit) as stopped:
            console.main()
        assert stopped.value.code == status and text in "".join(capsys.readouterr())
    monkeypatch.setattr(sys, "argv", ["jaxadv", "--version"])
    console.main()
    assert capsys.readouterr().out == f"jaxadv {jaxadv.__version__}\n"
