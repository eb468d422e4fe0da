"""The command line.

``parse`` and ``main`` are those of :mod:`experiments.cli.train`, loaded when they are first used:
``--help`` starts with this package and must not wait for JAX.
"""

import importlib


def __getattr__(name: str):
    if name in ("main", "parse"):
        return getattr(importlib.import_module(f"{__name__}.train"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
