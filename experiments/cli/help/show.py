"""Instant ``--help`` for the entry points, without loading JAX.

The texts are in ``experiments/cli/help/texts``, one file per program, as its own parser prints
them; ``python -m experiments.cli.help.write`` regenerates them, and a test compares them.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path

FOLDER = Path(__file__).parent / "texts"
FLAGS = ("-h", "--help", "-help", "--helpfull")
OWN = "JAXADV_OWN_HELP"  # set while generating the texts: the program prints its own


def show(renamed: Callable[[str], str] = str) -> None:
    """Prints the help of the running program, ``renamed``, if the command line asks for it."""
    words = sys.orig_argv
    if "-m" not in words or OWN in os.environ:
        return
    program, *arguments = words[words.index("-m") + 1 :]
    file = FOLDER / f"{program.removesuffix('.__main__')}.txt"
    if any(word in FLAGS for word in arguments) and file.is_file():
        sys.stdout.write(renamed(file.read_text(encoding="utf-8")))
        raise SystemExit(0)
