"""Helpers shared by all command lines: option spelling, fractions, folders."""

import argparse
import os
import sys
from pathlib import Path


class Parser(argparse.ArgumentParser):
    """An ``argparse`` parser that accepts every option with hyphens or underscores."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def parse_known_args(self, args=None, namespace=None):  # pyright: ignore[reportIncompatibleMethodOverride]  # overloaded in typeshed
        """Like ``argparse``, after normalizing the spelling of options."""
        argv = sys.argv[1:] if args is None else list(args)
        known = set(self._option_string_actions)
        return super().parse_known_args([_spelled(word, known) for word in argv], namespace)


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
    except (ValueError, ZeroDivisionError):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number or a fraction") from None


def numbers(text: str) -> tuple[float, ...]:
    """Comma-separated numbers or fractions."""
    return tuple(fraction(part) for part in text.split(","))


def folder(text: str) -> Path:
    """A path with "~" expanded."""
    return Path(text).expanduser()


def seed(text: str) -> int:
    """An integer in [0, 2^32); other seeds would alias one of these."""
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer") from None
    if not 0 <= value < 2**32:
        raise argparse.ArgumentTypeError(f"{text} is not in [0, 2**32)")
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
