"""Several processes, on one machine or many: starting, placing arrays, and what process 0 decides.

Every process runs the same program on the same arguments. Only process 0, the writer, locks, reads
and writes the run directory, and prints; :func:`from_writer` hands what it reads to the others, so
that they need no common disk. With one process, each function is the plain thing.
"""

import functools
import hashlib
import itertools
import re
import signal
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from . import signals

_HALF = 2**30  # a size is sent as two 32-bit integers
_calls = itertools.count()


class WriterFailed(Exception):
    """Process 0 failed and prints the reason; this process has nothing to add."""


class Common(Exception):
    """Marks errors that all processes raise together, so that one of them prints it."""


def start(hosts: str | None, *, together: bool = True) -> None:
    """Connects this process to the others; call it before anything else asks JAX for devices.

    Args:
        hosts: None for one process; "auto" to ask the launcher (SLURM, Open MPI, Kubernetes, Cloud
        TPU); or "ADDRESS:PORT,NUMBER,INDEX": process 0's address, the number of processes and this
        process's index.
        together: whether the processes compute together, so that SIGTERM must stop all of them
        after the same update; otherwise each stops for itself.

    Raises:
        ValueError: if ``hosts`` is not understood, or no launcher is found.
    """
    if hosts is None:
        return
    if together:
        signals.leave_to_others(signal.SIGTERM)  # JAX listens to it
    arguments: dict[str, Any] = {} if hosts == "auto" else _parsed(hosts)
    jax.config.update("jax_enable_preemption_service", together)
    try:
        jax.distributed.initialize(**arguments)
    except (ValueError, RuntimeError) as error:
        if hosts == "auto":
            raise ValueError(
                "--hosts=auto found no launcher (SLURM, Open MPI, Kubernetes, or Cloud TPU); start "
                f"the processes with one, or give --hosts=ADDRESS:PORT,NUMBER,INDEX ({error})"
            ) from error
        raise ValueError(f"--hosts={hosts}: {error}") from error


def check(hosts: str | None) -> None:
    """Raises a ``ValueError`` unless ``hosts`` is None, "auto" or ADDRESS:PORT,NUMBER,INDEX."""
    if hosts is not None and hosts != "auto":
        _parsed(hosts)


def is_writer() -> bool:
    """Whether this process locks, reads, writes and prints."""
    return jax.process_index() == 0


def place(tree: Any, sharding: jax.sharding.Sharding | None) -> Any:
    """Arrays that every process holds, onto the devices of ``sharding``.

    ``jax.device_put`` would gather them from all processes first, to compare them.
    """
    if jax.process_count() == 1 or sharding is None:
        return jax.device_put(tree, sharding)

    def placed(leaf):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            data = placed(jax.random.key_data(leaf))
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
        array = np.asarray(leaf)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return jax.tree.map(placed, tree)


def fetch(tree: Any) -> Any:
    """Arrays over all devices as NumPy arrays in every process."""
    if jax.process_count() > 1:
        tree = jax.tree.map(
            lambda x: x if x.is_fully_replicated else _replicated(x.sharding.mesh)(x), tree
        )
    return jax.device_get(tree)


def from_writer(read: Callable[[], bytes | None]) -> bytes | None:
    """``read()`` of process 0, in every process.

    Raises:
        WriterFailed: in the other processes if ``read`` raises an error in process 0.
    """
    if jax.process_count() == 1:
        return read()
    data, failure = None, None
    if is_writer():
        try:
            data = read()
        except Exception as error:
            failure = error
    size = -2 if failure is not None else -1 if data is None else len(data)
    high, low = multihost_utils.broadcast_one_to_all(np.array(divmod(size, _HALF), np.int32))
    size = int(high) * _HALF + int(low)
    if failure is not None:
        raise failure
    if size == -2:
        raise WriterFailed
    if size == -1:
        return None
    sent = np.zeros(size, np.uint8) if data is None else np.frombuffer(data, np.uint8)
    return np.asarray(multihost_utils.broadcast_one_to_all(sent)).tobytes()


def writer_first(action: Callable[[], None]) -> None:
    """Runs ``action`` in process 0, then in the others, which may find its files on a shared disk.

    Raises:
        WriterFailed: in the other processes if it raises an error in process 0.
    """
    from_writer(action)
    if not is_writer():
        action()


def check_equal(value: str, what: str) -> None:
    """Raises a ``ValueError`` in every process unless ``value`` is the same in all of them."""
    if jax.process_count() == 1:
        return
    digest = np.frombuffer(hashlib.sha256(value.encode()).digest(), np.uint32)
    found = multihost_utils.process_allgather(digest)
    different = [i for i, row in enumerate(found) if (row != found[0]).any()]
    if different:
        raise _Unequal(
            f"{what} of process {different[0]} differs from that of process 0; start every process "
            "with the same command and the same version of jaxadv"
        )


def stopping() -> bool:
    """Whether a signal to any process asks all of them to stop now.

    All processes must call it equally often, and all get the same answer in the same call.
    """
    if not stops_together():
        return False
    return multihost_utils.reached_preemption_sync_point(next(_calls))


def stops_together() -> bool:
    """Whether JAX itself handles SIGTERM, for :func:`stopping`."""
    return jax.distributed.is_initialized() and jax.config.jax_enable_preemption_service  # pyright: ignore[reportAttributeAccessIssue]


class _Unequal(ValueError, Common):
    pass


def _parsed(hosts: str) -> dict[str, Any]:
    found = re.fullmatch(r"(\S+:\d+),(\d+),(\d+)", hosts)
    address, number, index = (found[1], int(found[2]), int(found[3])) if found else ("", 0, 0)
    if not 0 <= index < number:
        raise ValueError(
            f"--hosts={hosts} is neither auto nor ADDRESS:PORT,NUMBER,INDEX with INDEX from 0 to "
            "NUMBER - 1, such as 10.0.0.1:1234,2,0"
        )
    return {"coordinator_address": address, "num_processes": number, "process_id": index}


@functools.cache
def _replicated(mesh: jax.sharding.Mesh) -> Callable:
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    return jax.jit(lambda x: x, out_shardings=everywhere)
