"""Small smooth networks in NumPy: derivatives, attacks, and their branches along parameters.

Shares no code with `jaxadv.theory`: derivatives are written out, attacks come from projected
ascent and Newton's method on the active set. Every array has a leading axis of networks.
"""

from typing import NamedTuple

import numpy as np

from .registry import norm, unit

# Depth (hidden layers), width, activation, and inputs: even and odd dimensions.
FAMILIES = (
    (1, 6, "tanh", 2),
    (1, 5, "softplus", 3),
    (2, 5, "tanh", 4),
    (2, 6, "swish", 5),
    (3, 6, "tanh", 6),
    (1, 8, "softplus", 8),
    (3, 5, "swish", 3),
)
CLASSES = 3


def _sigmoid(t):
    return 0.5 * (1 + np.tanh(0.5 * t))


def _activate(name: str, t):
    """An activation with its first two derivatives."""
    if name == "tanh":
        f = np.tanh(t)
        return f, 1 - f**2, -2 * f * (1 - f**2)
    s = _sigmoid(t)
    if name == "softplus":
        return np.logaddexp(0, t), s, s * (1 - s)
    slope = s * (1 - s)
    return t * s, s + t * slope, 2 * slope + t * slope * (1 - 2 * s)


class Family(NamedTuple):
    """Networks of one architecture: cross-entropy minus a well kappa |x - c(theta)|^2/2.

    Attributes:
        shapes: of the layers' matrices, (out, in).
        activation: "tanh", "softplus" or "swish".
        kappa: strength of the wells, shape (n,); a strong one makes the loss concave.
    """

    shapes: tuple[tuple[int, int], ...]
    activation: str
    kappa: np.ndarray

    def layers(self, theta):
        """Splits parameter vectors, shape (n, m), into matrices and biases."""
        found, start = [], 0
        for out, into in self.shapes:
            middle, end = start + out * into, start + out * into + out
            matrix = theta[:, start:middle].reshape(-1, out, into)
            found.append((matrix, theta[:, middle:end]))
            start = end
        return found

    def derivatives(self, theta, x, dtheta=None, dx=None):
        """Gradients g and G in x and theta, and their derivatives along (dtheta, dx).

        Args:
            theta: shape (n, m).
            x: shape (n, d).
            dtheta: direction, shape (n, m), 0 by default.
            dx: direction, shape (n, d), 0 by default.

        Returns:
            g (n, d), G (n, m), dg, dG, and the loss (n,).
        """
        dtheta = np.zeros_like(theta) if dtheta is None else dtheta
        dx = np.zeros_like(x) if dx is None else dx
        times = lambda matrix, v: np.einsum("nij,nj->ni", matrix, v)
        back = lambda matrix, v: np.einsum("nij,ni->nj", matrix, v)
        outer = lambda u, v: (u[:, :, None] * v[:, None, :]).reshape(len(u), -1)
        layers, moves = self.layers(theta), self.layers(dtheta)
        h, dh, kept = x, dx, []
        for k, ((w, b), (dw, db)) in enumerate(zip(layers, moves, strict=True)):
            a, da = times(w, h) + b, times(dw, h) + times(w, dh) + db
            f, slope, curve = (a, 1.0, 0.0) if k == len(layers) - 1 else self._bend(a)
            kept.append((h, dh, slope, curve * da))
            h, dh = f, slope * da
        top = h.max(1, keepdims=True)
        p = np.exp(h - top)
        total = p.sum(1, keepdims=True)
        loss = (top + np.log(total))[:, 0] - h[:, 0]
        p = p / total
        delta, ddelta = p.copy(), p * (dh - np.sum(p * dh, 1, keepdims=True))
        delta[:, 0] -= 1
        pieces, dpieces = [], []
        for (w, _), (dw, _), (h, dh, slope, dslope) in zip(
            layers[::-1], moves[::-1], kept[::-1], strict=True
        ):
            delta, ddelta = delta * slope, ddelta * slope + delta * dslope
            pieces[:0] = [outer(delta, h), delta.copy()]
            dpieces[:0] = [outer(ddelta, h) + outer(delta, dh), ddelta.copy()]
            delta, ddelta = back(w, delta), back(dw, delta) + back(w, ddelta)
        kappa, d = self.kappa[:, None], x.shape[1]
        # The well's center is 0.5 + 0.3 times the first d parameters.
        away, daway = x - 0.5 - 0.3 * theta[:, :d], dx - 0.3 * dtheta[:, :d]
        gradient, dgradient = np.concatenate(pieces, 1), np.concatenate(dpieces, 1)
        gradient[:, :d] += 0.3 * kappa * away
        dgradient[:, :d] += 0.3 * kappa * daway
        loss = loss - 0.5 * self.kappa * np.sum(away**2, 1)
        return delta - kappa * away, gradient, ddelta - kappa * daway, dgradient, loss

    def _bend(self, a):
        return _activate(self.activation, a)

    def second(self, theta, x):
        """H (n, d, d) and B (n, d, m), a direction of x at a time."""
        rows = []
        for i in range(x.shape[1]):
            dx = np.zeros_like(x)
            dx[:, i] = 1
            rows.append(self.derivatives(theta, x, dx=dx)[2:4])
        return np.stack([r[0] for r in rows], 2), np.stack([r[1] for r in rows], 1)

    def only(self, keep) -> "Family":
        """Some of the networks."""
        return self._replace(kappa=self.kappa[keep])


def draw(rng, family, count: int) -> tuple[Family, np.ndarray, np.ndarray, np.ndarray]:
    """Random networks of a family with their parameters, images and radii."""
    depth, width, activation, d = family
    sizes = [d, *[width] * depth, CLASSES]
    shapes = tuple((o, i) for i, o in zip(sizes[:-1], sizes[1:], strict=True))
    parts = []
    for out, into in shapes:
        parts.append(1.5 * rng.normal(size=(count, out * into)) / np.sqrt(into))
        parts.append(0.3 * rng.normal(size=(count, out)))
    kappa = np.resize([0.0, 1.0, 3.0, 30.0], count)
    images = rng.uniform(0.1, 0.9, size=(count, d))
    radii = np.resize([0.2, 0.5, 1.0], count)
    return Family(shapes, activation, kappa), np.concatenate(parts, 1), images, radii


class Point(NamedTuple):
    """Stationary points with what the lemmas need at them.

    Attributes:
        x: the attacks, shape (n, d).
        kind: "interior", "sphere", "vertex", "face", or "none" where the point is not regular.
        jacobian: D, shape (n, d, m).
        mixed: |B|, shape (n,).
        tangent: |T^T B| or |B_F|, 0 at a vertex.
        curvature: smallest eigenvalue of -H, -W_T or -H_FF, inf at a vertex.
        largest: the largest one.
        flat: that of -T^T H T, the multiplier left out.
        sigma: the c of the paper's lemma: smallest eigenvalue of -H, or singular value of K.
        top: largest singular value of K, or eigenvalue of -H.
        slope: G at the attack, shape (n, m).
        bounds: which coordinates are at which bound, as one number (Linf), shape (n,).
    """

    x: np.ndarray
    kind: np.ndarray
    jacobian: np.ndarray
    mixed: np.ndarray
    tangent: np.ndarray
    curvature: np.ndarray
    largest: np.ndarray
    flat: np.ndarray
    sigma: np.ndarray
    top: np.ndarray
    slope: np.ndarray
    bounds: np.ndarray


def ascend(net: Family, theta, image, eps, ball: str, sense: float = 1.0, steps: int = 300):
    """Projected gradient ascent from the image, or descent with ``sense`` -1."""
    x = image
    rate = 0.2 / (1 + net.kappa[:, None])
    for _ in range(steps):
        g = sense * net.derivatives(theta, x)[0]
        step = x - image + rate * np.maximum(1, 0.1 / np.maximum(norm(g)[:, None], 1e-12)) * g
        if ball == "linf":
            x = image + np.clip(step, -eps[:, None], eps[:, None])
        else:
            x = image + step * np.minimum(1, eps / np.maximum(norm(step), 1e-300))[:, None]
    return x


def _active(net: Family, theta, x, image, eps, ball: str, sense: float):
    """Basis of the free directions: (n, d, d), rows of active ones 0, and the multiplier / eps."""
    g = sense * net.derivatives(theta, x)[0]
    r, d = x - image, x.shape[1]
    if ball == "linf":
        at = np.abs(r) >= eps[:, None] * (1 - 1e-7)
        active = at & (np.sign(r) * g > 0)
        return np.where(active[:, None, :], 0.0, np.eye(d)), np.zeros(len(x)), ~active.any(1)
    inside = (norm(r) < eps * (1 - 1e-7)) | (np.sum(r * g, 1) <= 0)
    n = unit(np.where(inside[:, None], 1.0, r))
    basis = np.linalg.svd(n[:, None, :])[2]
    basis[:, 0] = np.where(inside[:, None], basis[:, 0], 0.0)
    pull = np.where(inside, 0.0, np.sum(n * g, 1) / eps)
    return np.swapaxes(basis, 1, 2), pull, inside


def polish(net: Family, theta, image, eps, x, ball: str, sense: float = 1.0, steps: int = 12):
    """Newton's method on the free directions of the current active set."""
    d = x.shape[1]
    for _ in range(steps):
        basis, pull, _ = _active(net, theta, x, image, eps, ball, sense)
        hessian, _ = net.second(theta, x)
        g = sense * net.derivatives(theta, x)[0]
        free = np.einsum("nij->nj", np.abs(basis)) > 0
        w = np.einsum("nki,nkl,nlj->nij", basis, sense * hessian, basis)
        w = w - pull[:, None, None] * np.eye(d)
        w = np.where(free[:, :, None] & free[:, None, :], w, -np.eye(d))
        z = -np.linalg.solve(w, np.einsum("nki,nk->ni", basis, g)[..., None])[..., 0]
        step = np.einsum("nki,ni->nk", basis, np.where(free, z, 0.0))
        step = step * np.minimum(1, 0.2 * eps / np.maximum(norm(step), 1e-300))[:, None]
        r = x - image + step
        if ball == "linf":
            x = image + np.clip(r, -eps[:, None], eps[:, None])
        else:
            on = ~free.all(1) | (norm(r) > eps)
            x = image + np.where(on[:, None], eps[:, None] * unit(r), r)
    return x


def analyse(net: Family, theta, image, eps, x, ball: str, sense: float = 1.0) -> Point:
    """Kinds, Jacobians and constants at polished attacks."""
    count, d = x.shape
    basis, pull, inside = _active(net, theta, x, image, eps, ball, sense)
    g, slope, *_ = net.derivatives(theta, x)
    hessian, mixed = net.second(theta, x)
    g, hessian, mixed = sense * g, sense * hessian, sense * mixed
    free = np.abs(basis).sum(1) > 0
    both = free[:, :, None] & free[:, None, :]
    flat = np.einsum("nki,nkl,nlj->nij", basis, hessian, basis)
    w = flat - pull[:, None, None] * np.eye(d)
    tangent = np.einsum("nki,nkm->nim", basis, mixed)
    solved = np.linalg.solve(np.where(both, w, -np.eye(d)), tangent)
    jacobian = -np.einsum("nik,nkm->nim", basis, solved)
    eigenvalues = lambda matrix, fill: np.linalg.eigvalsh(
        np.where(both, -matrix, np.where(np.eye(d, dtype=bool), fill, 0.0))
    )
    low, high = eigenvalues(w, 1e9)[:, 0], eigenvalues(w, -1e9)[:, -1]
    some = free.any(1)
    residual = norm(np.einsum("nki,nk->ni", basis, g))
    r = x - image
    slack = (eps[:, None] - np.abs(r)).min(1, where=free, initial=1.0) if ball == "linf" else 1.0
    slack = np.where(inside, eps - norm(r), 1.0) if ball == "l2" else slack
    tight = np.where(free, 1.0, np.abs(g)).min(1) if ball == "linf" else 1.0
    tight = np.where(inside, 1.0, pull) if ball == "l2" else tight
    good = (residual < 1e-9) & (slack > 1e-3 * eps) & (tight > 1e-3) & (~some | (low > 1e-2))
    if ball == "l2":
        kind = np.where(inside, "interior", "sphere")
    else:
        kind = np.where(inside, "interior", np.where(some, "face", "vertex"))
    border = np.zeros((count, d + 1, d + 1))
    n = unit(np.where(inside[:, None], 1.0, r))
    across = np.eye(d) - n[:, :, None] * n[:, None, :]
    border[:, 1:, 1:] = hessian - pull[:, None, None] * across
    border[:, 0, 1:] = border[:, 1:, 0] = n
    values = np.linalg.svd(border, compute_uv=False)
    return Point(
        x,
        np.where(good, kind, "none"),
        jacobian,
        np.linalg.norm(mixed, 2, axis=(1, 2)),
        np.linalg.norm(tangent, 2, axis=(1, 2)),
        np.where(some, low, np.inf),
        high,
        eigenvalues(flat, 1e9)[:, 0],
        np.where(inside, low, values[:, -1]),
        np.where(inside, high, values[:, 0]),
        slope,
        np.where(free, 0, np.sign(r)) @ 3.0 ** np.arange(d) * (ball == "linf"),
    )
