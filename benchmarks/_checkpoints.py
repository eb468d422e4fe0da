"""Small published networks from npz files with PyTorch names, in JAX and in PyTorch.

``meta.json`` in the same folder gives architecture ("cnn4s2", "cnn4s2p0", "lenet5"), mean and std.
"""

import gzip
import json
import pathlib
import struct
import types
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from experiments import data
from jaxadv import models

from . import _torch_resnet

ARCHITECTURES = ("cnn4s2", "cnn4s2p0", "lenet5")


class Checkpoint(types.SimpleNamespace):
    """Weights and their metadata.

    Attributes:
        name: name of the file.
        arch: one of ``ARCHITECTURES``.
        weights: arrays by PyTorch name.
        mean: per-channel mean.
        std: per-channel standard deviation.
        eps: Linf radius the network was trained for.
        dataset: the images it was trained on.
    """


def load_checkpoint(path, arch: str | None = None) -> Checkpoint:
    """Reads weights and the entry of ``meta.json``."""
    path = pathlib.Path(path)
    meta_path = path.with_name("meta.json")
    meta = json.loads(meta_path.read_text()).get(path.stem, {}) if meta_path.exists() else {}
    arch = arch or meta.get("arch")
    if arch not in ARCHITECTURES:
        raise ValueError(f"arch={arch!r} is not one of {', '.join(ARCHITECTURES)}; pass --arch")
    with np.load(path) as file:
        weights = dict(file)
    return Checkpoint(
        name=path.stem,
        arch=arch,
        weights=weights,
        mean=meta.get("mean", [0.0]),
        std=meta.get("std", [1.0]),
        eps=meta.get("eps", 8 / 255),
        dataset=meta.get("dataset"),
    )


def load_both(options) -> tuple[Checkpoint, np.ndarray, np.ndarray]:
    """The network, images and labels of a command line; sets ``options.eps`` if it is not given."""
    checkpoint = load_checkpoint(options.checkpoint, options.arch)
    options.eps = checkpoint.eps if options.eps is None else options.eps
    return checkpoint, *load_images(options.data or checkpoint.dataset, options.number)


def load_images(source, number: int) -> tuple[np.ndarray, np.ndarray]:
    """The first test images and labels.

    Args:
        source: a data set of :mod:`experiments.data`, an npz file with x and y, or an idx image
        file next to its labels.
        number: number of images.

    Returns:
        Images of shape (N, H, W, C), float32 in [0, 1], and labels, int32.
    """
    path = pathlib.Path(source)
    if source in data.NAMES:
        dataset = data.load(source)
        x, y = dataset.test_images[:number], dataset.test_labels[:number]
    elif path.suffix == ".npz":
        with np.load(path) as file:
            x, y = file["x"][:number], file["y"][:number]
    else:
        x = _idx(path)[:number, :, :, None]
        y = _idx(path.with_name(path.name.replace("images-idx3", "labels-idx1")))[:number]
    x = x.astype(np.float32) / 255 if x.dtype == np.uint8 else x.astype(np.float32)
    return x, y.astype(np.int32)


def _idx(path) -> np.ndarray:
    content = gzip.open(path).read() if path.suffix == ".gz" else path.read_bytes()
    rank = content[3]
    shape = struct.unpack(f">{rank}I", content[4 : 4 + 4 * rank])
    return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(shape)


def jax_model(checkpoint: Checkpoint):
    """A function from images (B, H, W, C) to logits."""
    w = {name: jnp.asarray(value) for name, value in checkpoint.weights.items()}
    mean, std = (
        jnp.asarray(v, jnp.float32).reshape(1, 1, 1, -1) for v in (checkpoint.mean, checkpoint.std)
    )

    def conv(x, name, stride, padding):
        kernel = w[f"{name}.weight"].transpose(2, 3, 1, 0)
        y = models.conv2d(x, kernel, strides=stride, padding=padding)
        return jax.nn.relu(y + w[f"{name}.bias"].reshape(1, 1, 1, -1))

    def pool(x):
        # This maximum sends its gradient to one of several equal entries, as in PyTorch; ``x.max``
        # would split it among them, and most entries of an MNIST image are equal.
        window = (1, 2, 2, 1)
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, window, "VALID")

    def linear(x, name):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"][None]

    def logits_fn(images):
        x = (images - mean) / std
        if checkpoint.arch == "lenet5":
            x = pool(conv(x, "conv1", 1, 1))
            x = pool(conv(x, "conv2", 1, 1))
            names = ("linear1", "linear2")
        else:
            padding = 0 if checkpoint.arch == "cnn4s2p0" else 1
            x = conv(conv(x, "0", 2, padding), "2", 2, padding)
            names = ("5", "7")
        x = x.transpose(0, 3, 1, 2).reshape(x.shape[0], -1)
        return linear(jax.nn.relu(linear(x, names[0])), names[1])

    return logits_fn


def torch_model(checkpoint: Checkpoint):
    """The same as a PyTorch function of NCHW images."""
    import torch  # pyright: ignore[reportMissingImports]
    from torch.nn import functional  # pyright: ignore[reportMissingImports]

    w = {name: torch.from_numpy(value) for name, value in checkpoint.weights.items()}
    mean, std = (
        torch.tensor(v).float().view(1, -1, 1, 1) for v in (checkpoint.mean, checkpoint.std)
    )

    def conv(x, name, stride, padding):
        y = functional.conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"], stride, padding)
        return functional.relu(y)

    def linear(x, name):
        return functional.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    def logits_fn(images):
        x = (images - mean) / std
        if checkpoint.arch == "lenet5":
            x = functional.max_pool2d(conv(x, "conv1", 1, 1), 2)
            x = functional.max_pool2d(conv(x, "conv2", 1, 1), 2)
            names = ("linear1", "linear2")
        else:
            padding = 0 if checkpoint.arch == "cnn4s2p0" else 1
            x = conv(conv(x, "0", 2, padding), "2", 2, padding)
            names = ("5", "7")
        return linear(functional.relu(linear(x.flatten(1), names[0])), names[1])

    return logits_fn


def resnets(width: int, seed: int = 0, *, plain: bool = False) -> tuple[Callable, Callable]:
    """PreActResNet-18 with random weights in JAX, and the same in PyTorch (evaluation mode).

    With ``plain`` its convolutions are those of ``flax.linen.Conv``, as in a user's own network.
    """
    gradients: models.Gradients = "native" if plain else "auto"
    module = models.preact_resnet18(10, width=width, gradients=gradients)
    variables = module.init(jax.random.key(seed), jnp.zeros((1, 32, 32, 3)))
    tensors = _torch_resnet.weights(module, variables)
    mean, std = _torch_resnet.constants(module)
    return (
        lambda images: module.apply(variables, images),
        lambda images: _torch_resnet.forward(tensors, images, mean, std),
    )
