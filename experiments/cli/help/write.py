"""Regenerates the ``--help`` texts from what the programs themselves print.

python -m experiments.cli.help.write                # all
python -m experiments.cli.help.write experiments    # those whose names start like this
"""

import os
import subprocess
import sys

from .show import FOLDER, OWN

_ROOT = FOLDER.parents[3]
_PACKAGES = ("experiments", "theory", "benchmarks")


def programs() -> list[str]:
    """The entry points that have a help text."""
    found = []
    for package in _PACKAGES:
        for path in sorted((_ROOT / package).glob("*.py")):
            is_program = '__name__ == "__main__"' in path.read_text(encoding="utf-8")
            if is_program and not path.stem.startswith("_"):
                found.append(f"{package}.{path.stem}")
        rooms = sorted((_ROOT / package).glob("*/__main__.py"))
        found += [f"{package}.{path.parent.name}" for path in rooms]
    return found


def own_text(program: str) -> str:
    """The program's own help output."""
    environment = os.environ | {OWN: "1", "COLUMNS": "100"}
    command = [sys.executable, "-m", program, "--help"]
    done = subprocess.run(command, env=environment, cwd=_ROOT, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"{program} --help fails: {done.stderr.strip().splitlines()[-1]}")
    return done.stdout


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name in programs():
        if not name.startswith(tuple(sys.argv[1:]) or ""):
            continue
        try:
            (FOLDER / f"{name}.txt").write_text(own_text(name), encoding="utf-8")
        except ValueError as error:  # a benchmark may need a package that is not installed
            print(error, file=sys.stderr)
