"""Programs lowered for accelerators that are not here, as StableHLO text."""

import contextlib
import re
from typing import NamedTuple

from jax._src.interpreters import mlir  # the one place that all programs pass on their way

PLATFORMS = ("cuda", "rocm", "tpu")
# What a program may call by name besides StableHLO's own operations: annotations of layouts, and
# the vendor's random numbers, sorting and factorizations. Python callbacks are none of them.
_KNOWN = re.compile(
    r"Sharding|SPMD\w+|annotate_\w+|mhlo\.\w+|TopK|ApproxTopK|"
    r"(cu|hip)_(threefry|lu)\w*|(cu|hip)solver_\w+|(cu|hip)(blas|rand)_\w+|"
    r"Eigh|Qr|ProductOfElementaryHouseholderReflectors|LuDecomposition|Cholesky"
)


class Lowered(NamedTuple):
    """A program as it is lowered for one or several platforms."""

    name: str
    text: str

    @property
    def is_float64(self) -> bool:
        """Whether an array of it is float64."""
        return re.search(r"[<x]f64>|complex<f64>", self.text) is not None

    @property
    def unknown_calls(self) -> set[str]:
        """Names of called programs that are not known to run on the accelerator."""
        called = re.findall(r'custom_call @([\w.$]+)|call_target_name = "([^"]*)"', self.text)
        names = {first or second for first, second in called}
        return {name for name in names if not _KNOWN.fullmatch(name)}


def lowered(function, *args, platforms=PLATFORMS, **options) -> Lowered:
    """A jitted function, lowered once for all platforms."""
    text = function.trace(*args, **options).lower(lowering_platforms=platforms).as_text()
    return Lowered(getattr(function, "__name__", ""), text)


@contextlib.contextmanager
def lowerings(platforms=PLATFORMS):
    """Lowers every program that is compiled inside the block for other platforms too.

    What was compiled before is not lowered again: `jax.clear_caches()` makes JAX forget it.
    """
    real, found = mlir.lower_jaxpr_to_module, []

    def elsewhere(name, jaxpr, **options):
        other = options | {"platforms": platforms, "backend": None}
        found.append(Lowered(name, str(real(name, jaxpr, **other).module)))
        return real(name, jaxpr, **options)

    mlir.lower_jaxpr_to_module = elsewhere
    try:
        yield found
    finally:
        mlir.lower_jaxpr_to_module = real


def check(*found: Lowered, float64: bool = False) -> None:
    """Fails unless the programs stay on the accelerator, and in float32 where they should."""
    assert found
    unknown = {(one.name, *one.unknown_calls) for one in found if one.unknown_calls}
    assert not unknown, unknown
    wide = {one.name for one in found if one.is_float64}
    assert float64 or not wide, wide
