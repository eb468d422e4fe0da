"""Strict mode for every test: warnings are errors, no silent broadcasting, no key used twice."""

import ctypes
import gc
import os
import pathlib
import signal

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_key_reuse", True)
jax.config.update("jax_legacy_prng_key", "error")

# Background jobs of a shell ignore Ctrl-C, and the programs that tests interrupt would inherit it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

GOLDEN = pathlib.Path(__file__).parent / "golden"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Marks what `slow.txt` lists. A line that names no test of a collected file is an error."""
    lines = (pathlib.Path(__file__).parent / "slow.txt").read_text(encoding="utf-8").splitlines()
    listed = {line for line in lines if line and not line.startswith("#")}
    for item in items:
        if item.nodeid in listed:
            item.add_marker(pytest.mark.slow)
    complete = {item.nodeid.partition("::")[0] for item in items}
    names = {item.nodeid for item in items}
    # A run of single tests or of one file collects only these.
    if len(complete) > 50:
        lost = sorted(line for line in listed if line not in names)
        if lost:
            raise pytest.UsageError(f"tests/slow.txt names tests that are not there: {lost}")


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
    """Frees memory after a file that leaves much: compiled programs pile up to gigabytes."""
    yield
    if resident() < 2**30:
        return  # what is compiled serves the next file too
    jax.clear_caches()
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc
    if trim is not None:
        trim(0)


def resident() -> int:
    """Bytes of this process in memory; where the system does not tell, more than any limit."""
    try:
        pages = pathlib.Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    except OSError:
        return 2**62
    return int(pages) * os.sysconf("SC_PAGE_SIZE")
