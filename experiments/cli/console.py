"""The command ``jaxadv``: each of its subcommands is a program of this package."""

import importlib.util
import re
import runpy
import sys

import jaxadv

from .help.show import show
from .options import nearest

_PROGRAMS = {
    "evaluate": "clean and robust accuracy of a trained checkpoint or of published weights",
    "zoo": "models of published weights: list and describe them",
    "report": "a run, or several compared, as one HTML page",
    "digits": "train on scikit-learn's digits",
    "cifar10": "train on CIFAR-10",
    "cifar100": "train on CIFAR-100",
    "svhn": "train on SVHN",
    "imagenet": "train on ImageNet",
    "data": "download and check data sets",
}
# Those that this version has.
COMMANDS = {
    name: text
    for name, text in _PROGRAMS.items()
    if importlib.util.find_spec(f"experiments.{name}") is not None
}


def main() -> None:
    """Runs ``python -m experiments.COMMAND`` with the rest of the command line."""
    words = sys.argv[1:]
    if not words or words[0] in ("-h", "--help"):
        print(usage())
        raise SystemExit(0 if words else 2)
    if words[0] == "--version":
        print(f"jaxadv {jaxadv.__version__}")
        return
    command, *rest = words
    if command not in COMMANDS:
        known = nearest(command, COMMANDS) or f"; use one of {', '.join(COMMANDS)}"
        print(f"error: unknown command {command!r}{known}", file=sys.stderr)
        raise SystemExit(2)
    program = f"experiments.{command}"
    # As `python -m` would have it: what reads the command line to show help, or to record it.
    sys.orig_argv = [sys.executable, "-m", program, *rest]
    sys.argv = [f"jaxadv {command}", *rest]
    show(renamed)
    runpy.run_module(program, run_name="__main__", alter_sys=False)


def renamed(text: str) -> str:
    """A help text with ``jaxadv COMMAND`` for ``python -m experiments.COMMAND``."""
    head, gap, rest = text.partition("\n\n")
    shift = " " * (len("python -m experiments.") - len("jaxadv "))  # of what stands below the name
    text = head.replace(f"\n{shift}", "\n") + gap + rest
    return re.sub(rf"python -m experiments\.({'|'.join(COMMANDS)})\b", r"jaxadv \1", text)


def usage() -> str:
    """The help text."""
    rows = "\n".join(f"  {name:10} {text}" for name, text in COMMANDS.items())
    return (
        "usage: jaxadv COMMAND [options]\n\n"
        f"{rows}\n\n"
        "jaxadv COMMAND --help lists the options, as does python -m experiments.COMMAND --help."
    )
