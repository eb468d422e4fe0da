"""EntropySGD in NumPy float64, written from the published algorithms without looking at jaxadv.

Three separate texts: the PyTorch reference code, its Lua sibling and the paper's Algorithm 1.
`draws` are the standard normal numbers of the inner steps; `grad(w, batch)` is the minibatch
gradient; `n_in` is the number of batches.
"""

import numpy as np


def pytorch_step(
    theta,
    M,
    t,
    *,
    grad,
    batches,
    draws,
    first_gradient,
    lr,
    inner_lr=0.1,
    mom=0.9,
    wd=5e-4,
    gamma=0.03,
    eps=1e-4,
    beta1=0.75,
    second_order=False,
):
    """ucla-vision/entropy-sgd, python/optim.py. M is None before the first step."""
    if M is None:
        M = first_gradient.copy()
    w, mu, xi, b = theta.copy(), theta.copy(), theta * theta, np.zeros_like(theta)
    for batch, eta in zip(batches, draws, strict=True):
        g = grad(w, batch)
        g = g + wd * w
        b = mom * b + g
        g = g + mom * b
        g = g - gamma * (theta - w) + eps / np.sqrt(0.5 * inner_lr) * eta
        w = w - inner_lr * g
        mu = beta1 * mu + (1 - beta1) * w
        xi = beta1 * xi + (1 - beta1) * w * w
    if len(batches) == 0:
        d = first_gradient.copy()
    else:
        d = theta - mu
        if second_order:
            d = gamma / (gamma - gamma**2 * (xi - mu * mu)) * d
    d = d + wd * theta
    M = mom * M + d
    d = d + mom * M
    return theta - lr * d, M


def lua_step(
    theta,
    M,
    t,
    *,
    grad,
    batches,
    draws,
    first_gradient,
    lr,
    inner_lr=0.1,
    mom=0.9,
    wd=5e-4,
    gamma=0.03,
    scoping=1e-3,
    eps=1e-4,
    beta1=0.75,
):
    """The Lua version: t counts from 1, weight decay after momentum, x <- x - lr (x - mu)."""
    del first_gradient
    gamma_t = gamma * (1 + scoping) ** (t + 1)
    w, mu, b = theta.copy(), theta.copy(), np.zeros_like(theta)
    for batch, eta in zip(batches, draws, strict=True):
        g = grad(w, batch)
        b = mom * b + g
        g = g + mom * b
        g = g + wd * w
        g = g - gamma_t * (theta - w) + eps / np.sqrt(0.5 * inner_lr) * eta
        w = w - inner_lr * g
        mu = beta1 * mu + (1 - beta1) * w
    return theta - lr * (theta - mu), M


def paper_step(
    theta,
    M,
    t,
    *,
    grad,
    batches,
    draws,
    first_gradient,
    lr,
    inner_lr=0.1,
    gamma=0.03,
    eps=1e-4,
    alpha=0.75,
    sign=-1,
    outer_gamma=True,
    second_order=False,
):
    """Algorithm 1 of the paper; sign=-1 is the printed one."""
    del t, first_gradient
    w, mu, xi = theta.copy(), theta.copy(), theta * theta
    for batch, eta in zip(batches, draws, strict=True):
        d = sign * grad(w, batch) - gamma * (theta - w)
        w = w - inner_lr * d + np.sqrt(inner_lr) * eps * eta
        mu = (1 - alpha) * mu + alpha * w
        xi = (1 - alpha) * xi + alpha * w * w
    if second_order:
        h = 1 / (gamma - gamma**2 * (xi - mu * mu))
        return theta - lr * gamma * h * (theta - mu), M
    return theta - lr * (gamma if outer_gamma else 1) * (theta - mu), M
