"""AWP in NumPy float64 for a small network with BatchNorm, written from the published algorithm.

The network is dense (kernel, bias), BatchNorm in train mode (scale, bias), tanh, dense (kernel,
bias), mean cross-entropy; its gradient is derived by hand. The reference's own steps are kept: a
proxy model, its SGD step on the negative loss, the difference of the kernels, the rescaling, the
weights moved there and back round the optimizer's step.
"""

import numpy as np

KERNELS = ("w1", "w2")
BN_EPS = 1e-5


def forward(p, x, y):
    """Loss, gradients and the batch statistics (mean, biased variance) of one train-mode pass."""
    n = len(x)
    h = x @ p["w1"] + p["b1"]
    mean, var = h.mean(0), h.var(0)
    root = np.sqrt(var + BN_EPS)
    z = (h - mean) / root
    a = np.tanh(z * p["scale"] + p["shift"])
    logits = a @ p["w2"] + p["b2"]
    q = np.exp(logits - logits.max(1, keepdims=True))
    q /= q.sum(1, keepdims=True)
    loss = -np.log(q[np.arange(n), y]).mean()
    dlogits = q.copy()
    dlogits[np.arange(n), y] -= 1
    dlogits /= n
    da = (dlogits @ p["w2"].T) * (1 - a * a)
    dz = da * p["scale"]
    dh = (dz - dz.mean(0) - z * (dz * z).mean(0)) / root
    grads = {
        "w1": x.T @ dh,
        "b1": dh.sum(0),
        "scale": (da * z).sum(0),
        "shift": da.sum(0),
        "w2": a.T @ dlogits,
        "b2": dlogits.sum(0),
    }
    return loss, grads, (mean, var)


def perturbation(p, x, y, gamma, proxy_rate):
    """v, by way of the proxy."""
    _, grads, _ = forward(p, x, y)
    proxy = {k: p[k] + proxy_rate * grads[k] for k in p}  # an SGD step on minus the loss
    v = {k: np.zeros_like(p[k]) for k in p}
    for k in KERNELS:
        diff = proxy[k] - p[k]
        v[k] = gamma * np.linalg.norm(p[k]) * diff / (np.linalg.norm(diff) + 1e-20)
    return v


def sgd_step(p, buffer, x, y, *, gamma, lr, momentum, decay, proxy_rate=0.01):
    """One minibatch of the reference: move the weights, torch's SGD, move them back."""
    v = perturbation(p, x, y, gamma, proxy_rate)
    moved = {k: p[k] + v[k] for k in p}
    loss, grads, stats = forward(moved, x, y)
    buffer = {k: momentum * buffer[k] + grads[k] + decay * moved[k] for k in p}
    moved = {k: moved[k] - lr * buffer[k] for k in p}
    return {k: moved[k] - v[k] for k in p}, buffer, loss, stats
