"""What every comparison writes beside its numbers: options, hardware, versions, commit."""

import pathlib
import re

from experiments import environment


def provenance(options) -> dict:
    """The command line without folders of this machine, and what it ran on."""
    described = environment.describe()
    return {
        "options": {name: _short(value) for name, value in vars(options).items()},
        "environment": described | {"command": _short(described["command"])},
    }


def _short(value):
    """A text without the folders of the paths in it."""
    if isinstance(value, pathlib.Path):
        return value.name
    return re.sub(r"/(?:[^\s/=]+/)*(?=[^\s/=]+)", "", value) if isinstance(value, str) else value
