"""The NumPy networks of the claims beside automatic differentiation and `jaxadv.theory`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("matplotlib")

from jaxadv import theory
from theory.claims import networks


def drawn(family, count=12):
    net, theta, image, eps = networks.draw(np.random.default_rng(0), family, count)
    return net, theta, image, eps


def loss_of(net, index):
    """One network's loss in JAX, written anew."""
    activate = {"tanh": jnp.tanh, "softplus": jax.nn.softplus, "swish": jax.nn.swish}
    kappa = net.kappa[index]

    def loss(x, theta):
        start, h = 0, x
        for k, (out, into) in enumerate(net.shapes):
            matrix = theta[start : start + out * into].reshape(out, into)
            h = matrix @ h + theta[start + out * into : start + out * into + out]
            h = h if k == len(net.shapes) - 1 else activate[net.activation](h)
            start += out * into + out
        away = x - 0.5 - 0.3 * theta[: len(x)]
        return jax.nn.logsumexp(h) - h[0] - kappa * jnp.sum(away**2) / 2

    return loss


@pytest.mark.parametrize("family", networks.FAMILIES, ids=str)
def test_derivatives_are_differences(family):
    net, theta, image, _ = drawn(family)
    rng, h = np.random.default_rng(1), 1e-5
    dtheta, dx = rng.normal(size=theta.shape), rng.normal(size=image.shape)
    g, slope, *second, _ = net.derivatives(theta, image, dtheta, dx)
    up, down = (net.derivatives(theta + s * h * dtheta, image + s * h * dx) for s in (1, -1))
    along = np.sum(g * dx, 1) + np.sum(slope * dtheta, 1)
    np.testing.assert_allclose((up[-1] - down[-1]) / (2 * h), along, rtol=1e-6, atol=1e-6)
    for exact, high, low in zip(second, up[:2], down[:2], strict=True):
        np.testing.assert_allclose((high - low) / (2 * h), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("family", networks.FAMILIES[1:4:2], ids=str)
def test_derivatives_are_those_of_jax(family):
    net, theta, image, _ = drawn(family)
    g, slope, *_, value = net.derivatives(theta, image)
    hessian, mixed = net.second(theta, image)
    loss = loss_of(net, 2)
    with jax.enable_x64(True):
        arguments = jnp.asarray(image[2]), jnp.asarray(theta[2])
        exact = [
            loss(*arguments),
            *jax.grad(loss, (0, 1))(*arguments),
            jax.hessian(loss)(*arguments),
            jax.jacfwd(jax.grad(loss), 1)(*arguments),
        ]
    for ours, theirs in zip((value, g, slope, hessian, mixed), exact, strict=True):
        np.testing.assert_allclose(ours[2], np.asarray(theirs), rtol=1e-11, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("ball", ["l2", "linf"])
def test_jacobians_are_those_of_jaxadv(ball):
    net, theta, image, eps = drawn(networks.FAMILIES[1])
    x = networks.ascend(net, theta, image, eps, ball)
    x = networks.polish(net, theta, image, eps, x, ball)
    point = networks.analyse(net, theta, image, eps, x, ball)
    kinds = set()
    with jax.enable_x64(True):
        for i in np.flatnonzero(point.kind != "none")[:6]:
            found = theory.attack_jacobian(
                loss_of(net, i), jnp.asarray(theta[i]), jnp.asarray(image[i]), norm=ball,
                eps=float(eps[i]), x_adv=jnp.asarray(x[i]),
            )  # fmt: skip
            kinds.add(found.kind)
            assert found.kind == point.kind[i]
            np.testing.assert_allclose(found.jacobian, point.jacobian[i], rtol=1e-6, atol=1e-9)
            if found.kind in ("interior", "sphere"):
                bound = point.mixed[i] / point.sigma[i]
                np.testing.assert_allclose(found.paper_bound, bound, rtol=1e-8)
            if found.kind != "vertex":
                bound = point.tangent[i] / point.curvature[i]
                np.testing.assert_allclose(found.sharp_bound, bound, rtol=1e-6)
    assert len(kinds) > 1


def test_attacks_are_maximizers():
    """No point nearby in the ball has a larger loss; minimizers are none."""
    net, theta, image, eps = drawn(networks.FAMILIES[1], 24)
    rng = np.random.default_rng(1)
    for sense in (1.0, -1.0):
        x = networks.ascend(net, theta, image, eps, "l2", sense)
        x = networks.polish(net, theta, image, eps, x, "l2", sense)
        regular = networks.analyse(net, theta, image, eps, x, "l2", sense).kind != "none"
        best = sense * net.derivatives(theta, x)[-1]
        for _ in range(20):
            r = x + 1e-3 * rng.normal(size=x.shape) - image
            r = r * np.minimum(1, eps / np.linalg.norm(r, axis=1))[:, None]
            other = sense * net.derivatives(theta, image + r)[-1]
            assert np.all(other[regular] <= best[regular] + 1e-12)
        assert regular.sum() > 12
