"""Branches of attacks on networks: how attacks move along segments of parameters."""

import functools
from typing import NamedTuple

import numpy as np

from .networks import FAMILIES, Family, Point, analyse, ascend, draw, polish
from .registry import norm, unit

NODES = 9  # on a segment, its ends included
SIMPSON = np.array([1, 4, 2, 4, 2, 4, 2, 4, 1]) / 24


class Branch(NamedTuple):
    """Pairs of parameters of one architecture whose segment carries one branch of attacks.

    Attributes:
        net: the networks.
        name: of the architecture.
        a: one end, shape (n, m).
        b: the other.
        nodes: `Point` per node of the segment, from a to b.
        thetas: parameters of the nodes, shape (NODES, n, m).
        kind: of all nodes, shape (n,).
    """

    net: Family
    name: str
    a: np.ndarray
    b: np.ndarray
    nodes: list[Point]
    thetas: np.ndarray
    kind: np.ndarray

    def select(self, *kinds: str) -> "Branch":
        """The pairs of these kinds."""
        keep = np.isin(self.kind, kinds)
        nodes = [Point(*(v[keep] for v in p)) for p in self.nodes]
        return Branch(
            self.net.only(keep), self.name, self.a[keep], self.b[keep], nodes,
            self.thetas[:, keep], self.kind[keep],
        )  # fmt: skip

    def along(self, name: str) -> np.ndarray:
        """An attribute of `Point` at the nodes, shape (NODES, n, ...)."""
        return np.stack([getattr(p, name) for p in self.nodes])

    def step(self) -> np.ndarray:
        """|a - b|."""
        return norm(self.a - self.b)

    def motion(self) -> np.ndarray:
        """|x'(a) - x'(b)|."""
        return norm(self.nodes[0].x - self.nodes[-1].x)

    def words(self, i: int) -> str:
        """Witness."""
        return f"{self.name}, {self.kind[i]}, pair {i}, |a - b| = {self.step()[i]:.2g}"


def _segment(net, image, eps, ball, sense, centre, first, a, b):
    """Attacks at the nodes: from the center to the middle, then outward, each from the last."""
    weights = np.linspace(0, 1, NODES)
    thetas = np.stack([(1 - t) * a + t * b for t in weights])
    follow = lambda theta, x: polish(net, theta, image, eps, x, ball, sense, steps=5)
    middle = NODES // 2
    x = first
    for t in (0.5, 1.0):
        x = follow((1 - t) * centre + t * thetas[middle], x)
    found = {middle: x}
    for side in (-1, 1):
        x = found[middle]
        for k in range(1, middle + 1):
            x = follow(thetas[middle + side * k], x)
            found[middle + side * k] = x
    return thetas, [
        analyse(net, thetas[k], image, eps, found[k], ball, sense) for k in range(NODES)
    ]


def _branch(rng, family, count: int, ball: str, sense: float) -> Branch:
    net, theta, image, eps = draw(rng, family, count)
    x = polish(net, theta, image, eps, ascend(net, theta, image, eps, ball, sense), ball, sense)
    center = analyse(net, theta, image, eps, x, ball, sense)
    keep = center.kind != "none"
    net, theta, image, eps, x = net.only(keep), theta[keep], image[keep], eps[keep], x[keep]
    # Half of the pairs along the direction in which the attack moves most, half anywhere.
    most = np.linalg.svd(center.jacobian[keep], full_matrices=False)[2][:, 0]
    size = 10.0 ** rng.uniform(-3, -0.5, size=(len(theta), 1))
    ends = unit(rng.normal(size=(2, *theta.shape))) * rng.uniform(size=(2, len(theta), 1))
    ends[0, ::2], ends[1, ::2] = most[::2], -most[::2]
    a, b = theta + size * ends
    thetas, nodes = _segment(net, image, eps, ball, sense, theta, x, a, b)
    kinds = np.stack([p.kind for p in nodes])
    steps = np.stack([norm(p.x - q.x) for p, q in zip(nodes[1:], nodes[:-1], strict=True)])
    smooth = steps.max(0) < 4 * steps.min(0) + 1e-12  # no jump to another branch
    bounds = np.stack([p.bounds for p in nodes])
    same = np.all(kinds == kinds[:1], axis=0) & np.all(bounds == bounds[:1], axis=0)
    same = same & (kinds[0] != "none") & smooth
    depth, width, activation, d = family
    name = f"{activation}, d = {d}, {depth} x {width}"
    found = Branch(net, name, a, b, nodes, thetas, np.where(same, kinds[0], "none"))
    return found.select("interior", "sphere", "vertex", "face")


@functools.lru_cache(maxsize=4)
def _branches(seed: int, count: int, ball: str, sense: float) -> tuple[Branch, ...]:
    rng = np.random.default_rng(seed)
    each = max(count // len(FAMILIES), 4)
    return tuple(_branch(rng, family, each, ball, sense) for family in FAMILIES)


def branches(rng, count: int, ball: str, *kinds: str, sense: float = 1.0) -> list[Branch]:
    """Pairs of these kinds on all architectures, about ``count`` before the selection.

    Args:
        rng: the claim's generator.
        count: number of networks.
        ball: "l2" or "linf".
        *kinds: of attacks.
        sense: 1 for maximizers, -1 for minimizers.

    Returns:
        One `Branch` per architecture that has any.
    """
    found = _branches(int(rng.integers(2**31)), count, ball, sense)
    selected = [branch.select(*kinds) for branch in found]
    return [branch for branch in selected if len(branch.a)]
