"""TRADES in NumPy float64 for dense, BatchNorm, tanh, dense; written from the published algorithm.

Parameters and statistics are those of the flax module of the training cases, as NumPy arrays.
"""

import numpy as np

EPS = 1e-5


def softmax(z):
    q = np.exp(z - z.max(1, keepdims=True))
    return q / q.sum(1, keepdims=True)


def network(p, x, mean, var):
    """Logits, and what the backward pass needs."""
    h = x @ p["Dense_0"]["kernel"] + p["Dense_0"]["bias"]
    bn, root = p["BatchNorm_0"], np.sqrt(var + EPS)
    a = np.tanh((h - mean) / root * bn["scale"] + bn["bias"])
    return a @ p["Dense_1"]["kernel"] + p["Dense_1"]["bias"], a, root


def train_mode(p, x, stats):
    """Logits with batch statistics, and the moved running ones (old weight 0.9)."""
    h = x @ p["Dense_0"]["kernel"] + p["Dense_0"]["bias"]
    mean, var = h.mean(0), h.var(0)
    moved = {"mean": 0.9 * stats["mean"] + 0.1 * mean, "var": 0.9 * stats["var"] + 0.1 * var}
    return network(p, x, mean, var)[0], moved


def kl_input_gradient(p, stats, x, clean):
    """Gradient of sum KL(clean || softmax f(x)) with respect to x, in eval mode."""
    z, a, root = network(p, x, stats["mean"], stats["var"])
    dz = softmax(z) - clean
    da = (dz @ p["Dense_1"]["kernel"].T) * (1 - a * a)
    return (da * p["BatchNorm_0"]["scale"] / root) @ p["Dense_0"]["kernel"].T


def attack(p, stats, x, noise, *, norm, eps, step_size, num_steps):
    """The inner maximisation of the TRADES code, noise of standard deviation 0.001 included."""
    clean = softmax(network(p, x, stats["mean"], stats["var"])[0])
    if norm == "linf":
        x_adv = x + noise
        for _ in range(num_steps):
            x_adv = x_adv + step_size * np.sign(kl_input_gradient(p, stats, x_adv, clean))
            x_adv = np.minimum(np.maximum(x_adv, x - eps), x + eps)
            x_adv = np.clip(x_adv, 0.0, 1.0)
        return np.clip(x_adv, 0.0, 1.0)
    delta = noise
    for _ in range(num_steps):
        g = kl_input_gradient(p, stats, x + delta, clean)
        delta = delta + step_size * g / np.linalg.norm(g, axis=1, keepdims=True)
        delta = np.clip(x + delta, 0, 1) - x
        size = np.linalg.norm(delta, axis=1, keepdims=True)
        delta = np.where(size > eps, delta * eps / size, delta)
    return np.clip(x + delta, 0.0, 1.0)


def loss(p, stats, x, x_adv, y, beta, order="adversarial_first"):
    """The training loss and the running statistics after its three passes."""
    if order == "adversarial_first":
        z_adv, stats = train_mode(p, x_adv, stats)
        target, stats = train_mode(p, x, stats)
        z, stats = train_mode(p, x, stats)
    else:
        z, stats = train_mode(p, x, stats)
        z_adv, stats = train_mode(p, x_adv, stats)
        target, stats = train_mode(p, x, stats)
    rows = np.arange(len(x))
    natural = -np.log(softmax(z)[rows, y]).mean()
    q = softmax(target)
    robust = (q * (np.log(q) - np.log(softmax(z_adv)))).sum() / len(x)
    return natural + beta * robust, stats
