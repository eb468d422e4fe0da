"""The command line.

``parse`` and ``main`` come from :mod:`experiments.cli.train` and are imported lazily: ``--help``
imports this package and must not wait for JAX.
"""

import importlib


def __getattr__(name: str):
    if name in ("main", "parse"):
        return getattr(importlib.import_module(f"{__name__}.train"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
