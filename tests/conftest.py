"""Strict mode for every test: warnings are errors, no silent broadcasting, no key used twice."""

import ctypes
import gc
import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Compiling is most of the suite's time, and LLVM's optimisations are not what is tested.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_key_reuse", True)
jax.config.update("jax_legacy_prng_key", "error")


GOLDEN = pathlib.Path(__file__).parent / "golden"


@pytest.fixture
def golden() -> pathlib.Path:
    return GOLDEN


@pytest.fixture
def x64():
    """Float64 inside the test, float32 again afterwards."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module", autouse=True)
def memory():
    """Hands memory back after every file: compiled programs pile up to gigabytes otherwise."""
    yield
    jax.clear_caches()
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc
    if trim is not None:
        trim(0)
