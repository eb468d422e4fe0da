"""Lanczos and conjugate gradients on matrices whose spectrum is known."""

import jax.numpy as jnp
import numpy as np

from jaxadv.theory import _krylov


def test_lanczos_and_conjugate_gradients_on_known_matrices(x64):
    rng = np.random.default_rng(0)
    q, _ = np.linalg.qr(rng.normal(size=(30, 30)))
    values = np.concatenate([[-2.0], rng.uniform(0, 1, size=28), [5.0]])
    matrix = jnp.asarray(q * values @ q.T)
    start = jnp.asarray(rng.normal(size=30))
    for reorthogonalize in (True, False):
        ends = _krylov.lanczos(
            lambda v: matrix @ v, start, tol=1e-10, max_steps=60, reorthogonalize=reorthogonalize
        )
        np.testing.assert_allclose([ends.low.value, ends.high.value], [-2, 5], rtol=1e-9)
        assert ends.low.converged and ends.high.converged
    early = _krylov.lanczos(lambda v: matrix @ v, start, tol=1e-10, max_steps=4)
    assert not early.high.converged
    assert np.abs(values - early.high.value).min() <= early.high.error
    spd = matrix + 3 * jnp.eye(30)
    found = _krylov.conjugate_gradients(lambda v: spd @ v, start, tol=1e-12, max_steps=200)
    np.testing.assert_allclose(spd @ found.solution, start, atol=1e-10)
    assert not found.negative and found.residual < 1e-12
    zero = _krylov.conjugate_gradients(lambda v: spd @ v, 0 * start, tol=1e-12, max_steps=9)
    assert (zero.solution == 0).all()
    down = _krylov.conjugate_gradients(lambda v: -spd @ v, start, tol=1e-12, max_steps=9)
    assert down.negative
    np.testing.assert_allclose(down.solution, start, rtol=1e-14)


def test_rounding_does_not_leave_the_subspace():
    """A spectrum of two values is exhausted after two products; what follows is rounding."""
    rng = np.random.default_rng(0)
    q, _ = np.linalg.qr(rng.normal(size=(200, 200)))
    values = np.repeat([1.0, 3.5, 0.0], [150, 10, 40])
    matrix = jnp.asarray(q * values @ q.T, jnp.float32)
    keep = jnp.asarray(q[:, :160] @ q[:, :160].T, jnp.float32)
    start = keep @ jnp.asarray(rng.normal(size=200), jnp.float32)
    ends = _krylov.lanczos(
        lambda v: matrix @ v, start, tol=1e-9, max_steps=12, project=lambda v: keep @ v
    )
    np.testing.assert_allclose([ends.low.value, ends.high.value], [1, 3.5], rtol=1e-5)
