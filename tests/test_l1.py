"""The exact projection onto the intersection of an L1 ball and the box."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv._l1 import order_statistic, project_l1_box


def exact_projection(x, d, eps):
    """Sorted breakpoints in float64; the dual of the L1 constraint by trying every interval."""
    cap = np.minimum(np.abs(d), np.where(d > 0, 1 - x, x))
    if cap.sum() <= eps:
        return np.sign(d) * cap
    breaks = np.unique(np.concatenate([np.abs(d) - cap, np.abs(d)]))
    lengths = [np.minimum(cap, np.maximum(np.abs(d) - t, 0)).sum() for t in breaks]
    i = int(np.searchsorted(-np.array(lengths), -eps)) - 1
    i = max(i, 0)
    t0, t1, l0, l1 = breaks[i], breaks[i + 1], lengths[i], lengths[i + 1]
    tau = t0 + (l0 - eps) * (t1 - t0) / (l0 - l1)
    return np.sign(d) * np.minimum(cap, np.maximum(np.abs(d) - tau, 0))


@pytest.mark.parametrize("eps", [0.5, 3.0, 10.0, 100.0])
@pytest.mark.parametrize("scale", [0.01, 1.0])
def test_l1_projection_is_exact(eps, scale):
    rng = np.random.default_rng(0)
    x = rng.uniform(size=(6, 300)).astype(np.float32)
    d = (rng.normal(size=x.shape) * scale).astype(np.float32)
    x[0, :50], x[1, :50], d[2] = 0.0, 1.0, 0.0
    d[3, :100] = d[3, 0]  # ties
    v = np.asarray(project_l1_box(jnp.asarray(x), jnp.asarray(d), eps))
    exact = np.stack(
        [exact_projection(*rows, eps) for rows in zip(x.astype(float), d, strict=True)]
    )
    np.testing.assert_allclose(v, exact, atol=1e-6)
    assert (np.abs(v.astype(float)).sum(axis=1) <= eps * (1 + 1e-6)).all()
    assert ((x + v >= 0) & (x + v <= 1)).all()
    small = (d * 1e-3).clip(-x, 1 - x)
    again = project_l1_box(jnp.asarray(x), jnp.asarray(small), 1e3)
    np.testing.assert_array_equal(again, small)


def test_order_statistic_is_that_of_a_sort():
    rng = np.random.default_rng(1)
    values = np.abs(rng.normal(size=(5, 77))).astype(np.float32)
    values[0] = 0.0
    values[1, :40] = values[1, 0]
    for rank in (0, 1, 38, 75, 76):
        found = order_statistic(jnp.asarray(values), jnp.full(5, rank))
        np.testing.assert_array_equal(found, np.sort(values, axis=1)[:, rank])
