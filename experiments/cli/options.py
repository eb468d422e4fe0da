"""Helpers shared by all command lines: option spelling, fractions, folders."""

import argparse
import difflib
import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """An ``argparse`` parser that accepts every option with hyphens or underscores.

    A mistake is one line that names the argument, its value and the remedy, with exit status 2.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def parse_known_args(self, args=None, namespace=None):  # pyright: ignore[reportIncompatibleMethodOverride]  # overloaded in typeshed
        """Like ``argparse``, after normalizing the spelling of options."""
        argv = sys.argv[1:] if args is None else list(args)
        known = set(self._option_string_actions)
        return super().parse_known_args([_spelled(word, known) for word in argv], namespace)

    def parse_args(self, args=None, namespace=None):  # pyright: ignore[reportIncompatibleMethodOverride]  # overloaded in typeshed
        """Like ``argparse``, with the nearest option for an unknown one."""
        found, rest = self.parse_known_args(args, namespace)
        if rest:
            word = next((word for word in rest if word.startswith("-")), rest[0]).split("=")[0]
            kind = "unknown option" if word.startswith("-") else "unexpected argument"
            known = [name[2:] for name in self._option_string_actions if name.startswith("--")]
            close = nearest(word.lstrip("-"), known, "--") if word.startswith("-") else ""
            self.error(f"{kind} {word}{close or '; --help lists what there is'}")
        return found

    def error(self, message: str) -> NoReturn:
        """Prints the message in one line and exits with status 2."""
        missing = re.fullmatch("the following arguments are required: (.*)", message)
        if missing is not None:
            names = missing[1].split(", ")
            wanted = [_wanted(action) for action in self._actions if _name(action) in names]
            message = f"{missing[1]} is missing; give {', and '.join(wanted)}"
        value = re.fullmatch("argument (?:.*/)?(.*): ignored explicit argument (.*)", message)
        if value is not None:
            message = f"{value[1]}={value[2]} takes no value; write {value[1]}"
        print(f"error: {' '.join(message.removeprefix('argument ').split())}", file=sys.stderr)
        raise SystemExit(2)

    def _match_argument(self, action, arg_strings_pattern):
        try:
            return super()._match_argument(action, arg_strings_pattern)  # pyright: ignore[reportAttributeAccessIssue]
        except argparse.ArgumentError:
            problem = f"{_name(action)} has no value; give {_wanted(action)}"
            raise argparse.ArgumentError(None, problem) from None

    def _get_value(self, action, arg_string):
        try:
            return super()._get_value(action, arg_string)  # pyright: ignore[reportAttributeAccessIssue]
        except argparse.ArgumentError as error:
            problem = f"{_name(action)}={arg_string!r} is not {_wanted(action)}"
            if isinstance(error.__context__, argparse.ArgumentTypeError):  # has its own message
                problem = f"--{error.message.removeprefix('--')}"
            raise argparse.ArgumentError(None, problem) from None

    def _check_value(self, action, value):
        if action.choices is not None and value not in action.choices:
            problem = f"{_name(action)}={value!r} is not {_wanted(action)}"
            raise argparse.ArgumentError(None, problem + nearest(str(value), action.choices))


def _name(action: argparse.Action) -> str:
    """The argument as it is typed."""
    named = [name for name in action.option_strings if name.startswith("--")]
    return (named or [*action.option_strings, str(action.metavar or action.dest)])[0]


def _wanted(action: argparse.Action) -> str:
    """What the argument takes: its choices, or what the docstring of its type says."""
    if action.choices is not None:
        return f"one of {', '.join(map(str, action.choices))}"
    kinds = {
        int: "An integer, such as 100.",
        float: "A number, such as 0.5.",
        Path: "A path.",
        None: "A value.",
    }
    said = kinds.get(action.type) or action.type.__doc__ or "A valid value."  # pyright: ignore
    return f"{said[0].lower()}{said[1:].splitlines()[0].rstrip('.')}"


def nearest(word: str, known: Iterable[str], prefix: str = "") -> str:
    """``; did you mean NAME?``, or "" if no known name is close."""
    near = difflib.get_close_matches(word.lower(), list(map(str, known)), n=1, cutoff=0.6)
    return f"; did you mean {prefix}{near[0]}?" if near else ""


def _spelled(word: str, known: set[str]) -> str:
    name, equals, value = word.partition("=")
    if not name.startswith("--") or name in known:
        return word
    for other in ("--" + name[2:].replace("_", "-"), "--" + name[2:].replace("-", "_")):
        if other in known:
            return other + equals + value
    return word


def fraction(text: str) -> float:
    """A number, or a fraction such as 8/255."""
    numerator, _, denominator = text.partition("/")
    try:
        return float(numerator) / float(denominator or 1)
    except ZeroDivisionError as error:
        raise ValueError(f"{text!r} divides by zero") from error


def numbers(text: str) -> tuple[float, ...]:
    """Numbers or fractions with commas between them, such as 0.49,0.48,0.45."""
    return tuple(fraction(part) for part in text.split(","))


def integers(text: str) -> list[int]:
    """Integers with commas between them, such as 16,64."""
    return [int(part) for part in text.split(",") if part]


def names(text: str) -> list[str]:
    """Names with commas between them."""
    return text.split(",")


def folder(text: str) -> Path:
    """A path, where "~" is the home folder."""
    return Path(text).expanduser()


def seed(text: str) -> int:
    """An integer in [0, 2^32); other seeds would alias one of these."""
    value = int(text)
    if not 0 <= value < 2**32:
        raise ValueError(f"{text} is not in [0, 2**32)")
    return value


def check_writable(path: Path) -> None:
    """Raises an ``OSError`` unless a file can be written at ``path``; creates nothing."""
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; give a file name")
    parent = path.absolute().parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise OSError(f"{path}: {parent} is not a writable folder; choose another path")
