"""Where training takes its images from: the device, or a stream from the host."""

import math
import os

import jax
import numpy as np

from jaxadv import training

from ..settings import Config
from . import hosts
from .task import Images

_SHARE = 3  # "auto" streams what exceeds this part of a device's memory
_CHUNK_BYTES = 2**30  # the minibatches of a call, unless one outer step of EntropySGD needs more


def streams(config: Config, images: Images) -> bool:
    """Whether a run streams its training images; by default if the device has no room for them."""
    if config.data.stream != "auto":
        return config.data.stream == "true"
    needed = _bytes(images.images.shape, images.images.dtype)
    # One process decides: machines may differ, and all processes must run the same programs.
    return hosts.from_writer(lambda: str(needed > device_memory() / _SHARE).encode()) == b"True"


def open_stream(config: Config, images: Images, *, at_most: int) -> training.Stream:
    """A stream of training images; close it.

    Args:
        config: resolved configuration.
        images: NumPy arrays, or images that are read from files by row.
        at_most: minibatches per compiled call.
    """
    minibatch = _bytes((config.batch_size, *images.images.shape[1:]), images.images.dtype)
    in_memory = isinstance(images.images, np.ndarray)
    return training.Stream(
        *images,
        chunk=max(1, min(at_most, _CHUNK_BYTES // minibatch)),
        threads=1 if in_memory else os.cpu_count() or 1,
    )


def resident(images: Images) -> training.DeviceData:
    """All training images, to be placed on the device."""
    pixels = images.images
    if not isinstance(pixels, np.ndarray):
        pixels = pixels[np.arange(pixels.shape[0])]
    return training.DeviceData(pixels, images.labels)


def device_memory() -> int:
    """Bytes of memory of a device; of a CPU device, its part of the machine's memory."""
    found = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in found:
        return found["bytes_limit"]
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return whole // jax.local_device_count()  # each has a copy of the data


def _bytes(shape: tuple[int, ...], dtype: np.dtype) -> int:
    return math.prod(shape) * np.dtype(dtype).itemsize
