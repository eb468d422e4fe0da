"""Small networks and inputs, from seeds alone, shared by the tests and the golden files.

Everything is numpy: the same arrays enter JAX (NHWC) here and PyTorch (NCHW) in tests/parity.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Net(NamedTuple):
    """3x3 convolution, tanh or ReLU, flatten in C, H, W order, linear; random weights."""

    kernel: np.ndarray  # (out, in, 3, 3)
    bias: np.ndarray
    weights: np.ndarray  # (K, out * H * W)
    activation: str = "tanh"


def net(seed, size=(10, 10, 3), classes=10, features=6, activation="tanh", dtype=np.float64) -> Net:
    rng = np.random.default_rng(seed)
    height, width, channels = size
    kernel = rng.normal(size=(features, channels, 3, 3)) / np.sqrt(9 * channels)
    bias = rng.normal(size=features) * 0.1
    weights = rng.normal(size=(classes, features * height * width)) / np.sqrt(features * height)
    return Net(kernel.astype(dtype), bias.astype(dtype), weights.astype(dtype), activation)


def jax_logits(model: Net):
    kernel = jnp.asarray(model.kernel.transpose(2, 3, 1, 0))
    bias = jnp.asarray(model.bias).reshape(1, 1, 1, -1)
    weights = jnp.asarray(model.weights.T)

    def logits_fn(images):
        y = jax.lax.conv_general_dilated(
            images * 2 - 1,
            kernel,
            (1, 1),
            ((1, 1), (1, 1)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        y = y + bias
        y = jnp.tanh(y) if model.activation == "tanh" else jax.nn.relu(y)
        return y.transpose(0, 3, 1, 2).reshape(images.shape[0], -1) @ weights

    return logits_fn


def images(seed, batch=8, size=(10, 10, 3), dtype=np.float64) -> np.ndarray:
    return np.random.default_rng(seed).uniform(size=(batch, *size)).astype(dtype)


def noise(seed, shape, norm, dtype=np.float64) -> np.ndarray:
    rng = np.random.default_rng(seed)
    drawn = rng.uniform(-1, 1, shape) if norm == "linf" else rng.normal(size=shape)
    return drawn.astype(dtype)


def fingerprint(points: np.ndarray) -> np.ndarray:
    """One number an image that any changed pixel changes."""
    flat = np.asarray(points, np.float64).reshape(points.shape[0], -1)
    return flat @ np.random.default_rng(99).normal(size=flat.shape[1])


def predictions(model: Net, points: np.ndarray) -> np.ndarray:
    return np.asarray(jax_logits(model)(jnp.asarray(points)).argmax(1)).astype(np.int32)


EPS = {"linf": 0.012, "l2": 0.12, "l1": 1.2}


class ApgdCase(NamedTuple):
    norm: str
    loss: str
    num_steps: int
    seed: int

    @property
    def name(self) -> str:
        return f"{self.norm}_{self.loss}_{self.num_steps}"


APGD_CASES = [
    ApgdCase("linf", "ce", 100, 0),
    ApgdCase("linf", "dlr", 100, 1),
    ApgdCase("linf", "dlr-targeted", 100, 2),
    ApgdCase("l2", "ce", 100, 3),
    ApgdCase("l2", "dlr", 100, 18),
    ApgdCase("l2", "dlr-targeted", 100, 5),
    ApgdCase("l2", "dlr-targeted", 10, 6),  # separates the baselines of the first window
    ApgdCase("l2", "ce", 37, 7),  # separates "at most" from "fewer than" rho k
    ApgdCase("linf", "dlr", 20, 8),
    ApgdCase("l1", "ce", 40, 9),
    ApgdCase("l1", "dlr", 100, 10),
    ApgdCase("l1", "dlr-targeted", 30, 13),
]


class SquareCase(NamedTuple):
    norm: str
    num_queries: int
    seed: int
    eps: float


SQUARE_CASES = [
    SquareCase("linf", 500, 40, 0.01),
    SquareCase("l2", 60, 41, 0.08),
    SquareCase("l1", 60, 42, 0.6),
]


def square_draws(case: SquareCase, batch, size=(10, 10, 3)):
    """Uniform positions (Q, 4), signs (Q, C), flips (Q,), initial signs and flips: one for all."""
    rng = np.random.default_rng(300 + case.seed)
    sign = lambda *shape: np.where(rng.uniform(size=shape) < 0.5, -1.0, 1.0)
    positions = rng.uniform(size=(case.num_queries, 4)).astype(np.float32)
    signs, flips = sign(case.num_queries, size[2]), rng.uniform(size=case.num_queries) > 0.5
    if case.norm == "linf":
        return positions[:, :2], signs, flips, sign(batch, size[1], size[2]), None
    side = size[0] // 5
    tiles = (size[0] // side, size[1] // side)
    return positions, signs, flips, sign(batch, *tiles, size[2]), rng.uniform(size=tiles) > 0.5


class FabCase(NamedTuple):
    norm: str
    targeted: bool
    num_steps: int
    random_start: bool
    seed: int

    @property
    def name(self) -> str:
        kind = "targeted" if self.targeted else "untargeted"
        return f"{self.norm}_{kind}_{self.num_steps}"


FAB_CASES = [
    FabCase("linf", True, 1, False, 60),
    FabCase("linf", True, 30, False, 61),
    FabCase("l2", True, 5, True, 62),
    FabCase("l2", True, 30, False, 63),
    FabCase("l1", True, 5, False, 64),
    FabCase("linf", False, 5, True, 65),
    FabCase("l2", False, 30, False, 66),
    FabCase("l1", False, 10, False, 67),
]


def hyperplanes(seed, rows=40, size=60):
    """Points, normals and offsets b: random, at corners, sparse, infeasible, on the plane."""
    rng = np.random.default_rng(seed)
    points, normals = rng.uniform(size=(rows, size)), rng.normal(size=(rows, size))
    points[:10] = np.round(points[:10])
    normals[5:15] *= rng.uniform(size=(10, size)) < 0.2
    normals[15:18] = 0
    offsets = (points * normals).sum(1) - rng.normal(size=rows) * rng.choice([0.3, 3, 30], rows)
    offsets[20:24] = (points * normals).sum(1)[20:24]
    return tuple(a.astype(np.float32) for a in (points, normals, offsets))
