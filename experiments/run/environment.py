"""Provenance stored with every result: hardware, versions, commit, precision, command."""

import contextlib
import datetime
import os
import platform
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import jax

import jaxadv

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "scipy")


def configure() -> None:
    """Keeps the entry points' compiled programs in the user's cache folder.

    ``JAX_COMPILATION_CACHE_DIR`` selects another folder; an empty value disables the cache.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(cache / "jaxadv" / "jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def split_cpu(batch_size: int = 128) -> None:
    """Gives JAX one CPU device per core, at most 4; training splits minibatches among them.

    Fewer where they would not divide ``batch_size``.

    Two programs in parallel use two cores better than one program with split operations: 1.3 times
    as fast for a ResNet on CIFAR-10, but no faster for networks on 8x8 images.
    ``JAX_NUM_CPU_DEVICES`` overrides the number. No effect once JAX is initialized.
    """
    chosen = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if chosen or "JAX_NUM_CPU_DEVICES" in os.environ:
        return
    with contextlib.suppress(RuntimeError):  # JAX is already initialized: no effect, as documented
        count = min(os.cpu_count() or 1, 4)
        while batch_size % count:
            count -= 1
        jax.config.update("jax_num_cpu_devices", count)


def describe() -> dict:
    """A JSON-serializable record of this process's hardware and software.

    Example:
        >>> sorted(describe())[:3]
        ['command', 'commit', 'cpu']
    """
    device = jax.devices()[0]
    return {
        "device": device_name(),
        "platform": device.platform,
        "num_devices": jax.device_count(),
        "num_processes": jax.process_count(),
        "cpu": _cpu_name(),
        "cpu_cores": os.cpu_count(),
        "python": platform.python_version(),
        "packages": {"jaxadv": jaxadv.__version__}
        | {name: metadata.version(name) for name in _PACKAGES},
        "commit": commit(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "matmul_precision": str(jax.config.jax_default_matmul_precision or "default"),  # pyright: ignore[reportAttributeAccessIssue]
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "command": _command(),
    }


def machine() -> dict:
    """What the last bits of a result depend on, besides configuration and data."""
    return {
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "device": jax.devices()[0].device_kind if jax.default_backend() != "cpu" else _cpu_name(),
        "jax": jax.__version__,
    }


def device_name() -> str:
    """A description of the device: the GPU's name, or the CPU and its cores."""
    device = jax.devices()[0]
    name = f"{_cpu_name()}, {os.cpu_count()} cores" if device.platform == "cpu" else None
    return name or f"{jax.device_count()} x {device.device_kind}"


def commit() -> str:
    """The checkout's commit, with a plus sign if files are modified; "" outside a checkout."""
    root = Path(__file__).parents[2]

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False
        )
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        name = git("rev-parse", "--short=12", "HEAD")
        return name + ("+" if name and git("status", "--porcelain", "-uno") else "")
    except OSError:
        return ""


def _command() -> str:
    program = Path(sys.argv[0])
    parts = program.with_suffix("").parts
    name = f"python -m {'.'.join(parts[-2:])}" if program.suffix == ".py" else program.name
    return " ".join([name, *map(shlex.quote, sys.argv[1:])])


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
