"""``--help`` comes at once, says what the parser says, and starts nothing."""

import subprocess
import sys
from pathlib import Path

import pytest

from experiments.cli.help.show import FOLDER
from experiments.cli.help.write import own_text, programs

ROOT = Path(__file__).parents[3]


def test_every_program_has_a_text():
    assert {path.stem for path in FOLDER.glob("*.txt")} == set(programs())


@pytest.mark.parametrize("program", ["experiments.evaluate", "experiments.cifar10"])
def test_the_text_is_what_the_program_prints(program):
    assert (FOLDER / f"{program}.txt").read_text() == own_text(program)


@pytest.mark.slow
@pytest.mark.parametrize("program", programs())
def test_every_text_is_what_its_program_prints(program):
    if program == "benchmarks.training":
        pytest.importorskip("torch")
    assert (FOLDER / f"{program}.txt").read_text() == own_text(program)


@pytest.mark.parametrize("program", ["experiments.digits", "theory.claims", "benchmarks.pgd"])
def test_help_does_not_load_jax(program):
    code = (
        "import runpy, sys\n"
        f"sys.orig_argv = ['python', '-m', {program!r}, '--config.seed', '3', '--help']\n"
        "try:\n"
        f"    runpy.run_module({program!r}, run_name='__main__')\n"
        "except SystemExit as error:\n"
        "    assert not error.code and 'jax' not in sys.modules and 'numpy' not in sys.modules\n"
        "else:\n"
        "    sys.exit('it ran')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout or program in done.stdout
