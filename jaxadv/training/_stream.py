"""A training set that is read on the host, minibatch by minibatch, while the device computes."""

import concurrent.futures
import functools
import threading
import weakref
from collections import deque
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from .._transfers import on_host
from ..checks import check_count, check_labels
from ..types import Key
from ._data import check_pixels
from ._minibatches import Chunk, epoch_order, num_minibatches


class Rows(Protocol):
    """Images that are read by row: a NumPy array, a memory map, or a reader of files.

    A reader may also have ``where(row)``, which names a row's file in errors.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, H, W, C)."""
        ...

    @property
    def dtype(self) -> np.dtype:
        """uint8, other integers of 0 to 255, or floats in [0, 1]."""
        ...

    def __getitem__(self, rows: np.ndarray, /) -> np.ndarray:
        """The images of some rows, of shape (B, H, W, C); called from several threads."""
        ...


class Stream:
    """A data set that stays on the host, for :meth:`Program.advance` in place of `DeviceData`.

    Threads read the minibatches ahead while the device computes. Only ``chunk`` minibatches (or
    those of an outer step of EntropySGD, if these are more) are on the device, and at most twice
    as many wait on the host. The rows of minibatch t follow from the run's key and t as in the
    compiled programs, so that states, metrics and resumed runs have the bits that `DeviceData`
    gives. Among several processes, each reads its columns of every minibatch.

    Close it, or use it as a context manager, to end its threads.

    Attributes:
        images: see below.
        labels: see below.
        chunk: see below.

    Args:
        images: of shape (N, H, W, C), uint8 (or other integers of 0 to 255) or floats in [0, 1]: a
            NumPy array, a memory map (``numpy.load(path, mmap_mode="r")``), or any object with
            ``shape``, ``dtype`` and ``images[rows]`` for an integer array.
        labels: class indices of shape (N,), in memory.
        chunk: largest number of minibatches in a compiled call: the ``at_most`` of
            :meth:`Program.call_length`. One number serves a run: each compiles a program.
        threads: that read minibatches; more than one helps where images must be decoded.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxadv import objectives, training
        >>> def apply_fn(params, batch_stats, images, train):
        ...     return images.reshape(images.shape[0], -1) @ params, batch_stats
        >>> objective = objectives.adversarial_cross_entropy(apply_fn, eps=0.1, step_size=0.05)
        >>> phases = [training.Phase(8, lambda first, n_in: training.sgd(0.1))]
        >>> program = training.Program(apply_fn, objective, batch_size=4, phases=phases)
        >>> state, step = training.TrainState.create(jnp.zeros((4, 3)), {}, program), 0
        >>> images, labels = np.zeros((16, 2, 2, 1), np.uint8), np.arange(16) % 3
        >>> with training.Stream(images, labels, chunk=3) as data:
        ...     while count := program.call_length(step, left=8 - step, at_most=data.chunk):
        ...         state, metrics = program.advance(state, data, jax.random.key(0), count)
        ...         step += count
        >>> int(state.step)
        8
    """

    def __init__(self, images: Rows, labels: Any, *, chunk: int = 8, threads: int = 1) -> None:
        if not getattr(images, "shape", ()) or not hasattr(images, "dtype"):
            raise ValueError(
                f"images is a {type(images).__name__}; pass an object with shape (N, H, W, C), "
                "dtype and images[rows], such as numpy.load(path, mmap_mode='r')"
            )
        check_pixels(np.zeros(0, images.dtype))
        check_labels(labels, images.shape[0])
        check_count("chunk", chunk, 1)
        check_count("threads", threads, 1)
        self.images, self.labels, self.chunk = images, np.asarray(labels), chunk
        self._pool = concurrent.futures.ThreadPoolExecutor(threads, "jaxadv-stream")
        # Without a reference to the stream, so that a forgotten one ends its threads too.
        self._end = weakref.finalize(self, self._pool.shutdown, wait=False, cancel_futures=True)
        self._reader: _Reader | None = None
        self._waiting: deque[concurrent.futures.Future] = deque()
        self._first = 0  # number of the first minibatch in _waiting

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(H, W, C)."""
        return tuple(self.images.shape[1:])

    def __enter__(self) -> "Stream":
        """Gives the stream itself."""
        return self

    def __exit__(self, *_: Any) -> None:
        """Closes the stream."""
        self.close()

    def close(self) -> None:
        """Ends the threads, after the minibatches that they are reading."""
        self._forget()
        self._end.detach()
        self._pool.shutdown(wait=True, cancel_futures=True)

    @on_host
    def take(
        self,
        key: Key,
        first: int,
        count: int,
        *,
        batch_size: int,
        sharding: jax.sharding.Sharding | None = None,
        size: int | None = None,
    ) -> Chunk:
        """Minibatches ``first`` to ``first + count - 1`` on the device; the next ones are begun.

        :meth:`Program.advance` calls it; the steps of :meth:`Program.sgd_steps` and
        :meth:`Program.entropy_step` take its result in place of `DeviceData`.

        Args:
            key: key of the run's minibatches, a threefry key.
            first: number of the first minibatch, counted over the run.
            count: number of minibatches.
            batch_size: images per minibatch.
            sharding: of minibatches over devices, a ``NamedSharding``; None for one device.
            size: minibatches that the chunk has room for, by default those of ``self.chunk``.

        Raises:
            OSError: if images cannot be read; names the first of them and its file.
            ValueError: if they have another shape or dtype, or values out of range.
        """
        if not self._end.alive:
            raise ValueError("the stream is closed; make another one")
        size = self.chunk if size is None else size
        if count > size:
            raise ValueError(
                f"num_steps={count} exceeds the {size} minibatches of a chunk; pass "
                f"at_most={self.chunk} to call_length, or use Stream(..., chunk={count})"
            )
        wanted = _Sequence(_words(key), batch_size, sharding)
        if self._reader is None or self._reader.sequence != wanted:
            self._forget()
            self._reader = _Reader(self.images, self.labels, wanted)
        if first != self._first:
            self._forget()
            self._first = first
        while len(self._waiting) < count + size:
            step = self._first + len(self._waiting)
            self._waiting.append(self._pool.submit(self._reader.read, step))
        try:
            parts = [self._waiting.popleft().result() for _ in range(count)]
        except BaseException:
            self._forget()
            raise
        self._first += count
        stacked = (_stack(arrays, size) for arrays in zip(*parts, strict=True))
        pixels, labels = (_placed(array, batch_size, sharding) for array in stacked)
        return Chunk(pixels, labels, np.int32(first), self.image_shape)

    def _forget(self) -> None:
        for future in self._waiting:
            future.cancel()
        self._waiting.clear()


class _Sequence(NamedTuple):
    """What determines the minibatches of a run, apart from the data."""

    key_words: tuple[int, ...]
    batch_size: int
    sharding: jax.sharding.Sharding | None


class _Reader:
    """Reads minibatches of one sequence; called from the threads of a pool."""

    def __init__(self, images: Rows, labels: np.ndarray, sequence: _Sequence) -> None:
        self.images, self.labels, self.sequence = images, labels, sequence
        self.columns = _columns(sequence.sharding, sequence.batch_size)
        self.num_batches = num_minibatches(len(labels), sequence.batch_size)
        self._lock = threading.Lock()
        self._orders: dict[int, np.ndarray] = {}  # of the latest epochs

    def read(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Pixels (B', H*W*C) and labels (B',) of this process's columns of a minibatch."""
        epoch, batch = divmod(step, self.num_batches)
        rows = self._order(epoch)[batch][self.columns]
        try:
            images = self.images[rows]
        except Exception as error:
            raise OSError(self._complaint(rows, error)) from error
        expected = (len(rows), *self.images.shape[1:])
        if images.shape != expected or images.dtype != self.images.dtype:
            raise ValueError(
                f"images[rows] is {images.dtype} of shape {images.shape} for {len(rows)} rows, "
                f"but images says {self.images.dtype} and {expected}; mend the reader"
            )
        check_pixels(images)
        return images.reshape(len(rows), -1), self.labels[rows]

    def _order(self, epoch: int) -> np.ndarray:
        with self._lock:
            if epoch not in self._orders:
                if len(self._orders) > 1:
                    del self._orders[min(self._orders)]
                words, batch_size, _ = self.sequence
                self._orders[epoch] = _order_of(words, epoch, len(self.labels), batch_size)
            return self._orders[epoch]

    def _complaint(self, rows: np.ndarray, error: Exception) -> str:
        """Which image it is; a minibatch is read at once, and its error may not say."""
        for row in rows:
            try:
                self.images[np.array([row])]
            except Exception as own:
                return f"cannot read {self._where(row)} ({_line(own)}); restore it and resume"
        file = self._where(rows[0])
        return f"cannot read {len(rows)} images from {file} on ({_line(error)}); resume the run"

    def _where(self, row: int) -> str:
        if hasattr(self.images, "where"):
            return getattr(self.images, "where")(row)  # noqa: B009
        file = getattr(self.images, "filename", None) or type(self.images).__name__
        return f"image {row} of {file}"


@on_host
def _order_of(words: tuple[int, ...], epoch: int, num_images: int, batch_size: int) -> np.ndarray:
    """The rows of an epoch's minibatches, computed where no training call has to end first."""
    with jax.default_device(_host()):
        key = jax.random.wrap_key_data(jnp.array(words, jnp.uint32), impl="threefry2x32")
        return np.asarray(_compiled_order(key, epoch, num_images, batch_size))


_compiled_order = jax.jit(epoch_order, static_argnums=(2, 3))


@functools.cache
def _host() -> Any:
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # jax_platforms leaves it out
        return jax.local_devices()[0]


def _words(key: Key) -> tuple[int, ...]:
    """A key as integers."""
    name = str(jax.random.key_impl(key))
    if name != "threefry2x32":
        raise ValueError(
            f"key has the generator {name}, whose permutations depend on where they are drawn; "
            "pass jax.random.key(seed, impl='threefry2x32')"
        )
    return tuple(np.asarray(jax.random.key_data(key)).tolist())


def _columns(sharding: jax.sharding.Sharding | None, batch_size: int) -> np.ndarray:
    """The positions in a minibatch that this process's devices hold."""
    if sharding is None:
        return np.arange(batch_size)
    if not isinstance(sharding, jax.sharding.NamedSharding):
        raise ValueError(f"sharding is a {type(sharding).__name__}; pass a NamedSharding")
    parts = sharding.addressable_devices_indices_map((batch_size,)).values()
    bounds = {part[0].indices(batch_size)[:2] for part in parts if part is not None}
    return np.concatenate([np.arange(*pair) for pair in sorted(bounds)])


def _stack(arrays: tuple[np.ndarray, ...], size: int) -> np.ndarray:
    """Arrays (B', ...) as a new one (size, B', ...), with zeros after the last."""
    stacked = np.zeros((size, *arrays[0].shape), arrays[0].dtype)
    for place, array in zip(stacked, arrays, strict=False):
        place[...] = array
    return stacked


def _placed(
    array: np.ndarray, batch_size: int, sharding: jax.sharding.Sharding | None
) -> jax.Array:
    """An array (k, B', ...) of this process's columns as (k, B, ...) on the devices."""
    if sharding is None:
        return jax.device_put(array)
    assert isinstance(sharding, jax.sharding.NamedSharding)
    spec = jax.sharding.PartitionSpec(None, *sharding.spec)
    shape = (array.shape[0], batch_size, *array.shape[2:])
    layout = jax.sharding.NamedSharding(sharding.mesh, spec)
    return jax.make_array_from_process_local_data(layout, array, shape)


def _line(error: Exception) -> str:
    """An error as one line."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
