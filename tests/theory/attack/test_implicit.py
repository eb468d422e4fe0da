"""The one rule of the implicit function theorem, with both of its solvers."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxadv.theory._attack.active import active_set
from jaxadv.theory._attack.feasible import Feasible
from jaxadv.theory._attack.implicit import (
    conjugate_solve,
    dense_solve,
    implicit_motion,
    tangent_residual,
)
from jaxadv.theory._attack.kkt import kkt_residual, normalized_multiplier

DONE = jnp.zeros(())  # nothing to wait for


def test_the_motion_of_a_root_is_that_of_a_linear_system(x64):
    """F(u; p) = A u + sum(u^3) e - p, at the root u = 0 of p = 0: A u' = p'."""
    rng = np.random.default_rng(0)
    factor = rng.normal(size=(5, 5))
    a = -(factor @ factor.T + np.eye(5))
    residual = lambda u: jnp.asarray(a) @ u + jnp.sum(u**3)
    push = -jnp.asarray(rng.normal(size=(5, 3)))
    expected = np.linalg.solve(a, -push)
    found = implicit_motion(residual, jnp.zeros(5), push, dense_solve(DONE))
    np.testing.assert_allclose(found, expected, atol=1e-12)
    one = implicit_motion(residual, jnp.zeros(5), push[:, 0], conjugate_solve(1e-14, 20))
    np.testing.assert_allclose(one.solution, expected[:, 0], atol=1e-12)
    assert not one.negative


def test_the_kkt_system_and_its_tangent_part_move_alike(x64):
    """-|x - theta|^2/2 on the unit sphere: D = (I - n n^T)/|theta|."""
    theta, x, n = jnp.array([0.0, 1.2, 1.6]), jnp.zeros(3), jnp.array([0.0, 0.6, 0.8])
    loss = lambda z, theta: -0.5 * jnp.sum((z - theta) ** 2)
    feasible, gradient = Feasible.make(x, norm="l2", eps=1.0), jax.grad(loss)
    active, scale = active_set(feasible, n, gradient(n, theta)), jnp.asarray(2.0)
    assert active.on_ball
    u = jnp.array([1.0, -2.0, 0.5])
    expected = (u - n * (n @ u)) / 2.0

    root = jnp.append(n, normalized_multiplier(active, scale))
    system = lambda unknowns, theta: kkt_residual(loss, unknowns, theta, feasible, active, scale)
    np.testing.assert_allclose(system(root, theta), 0.0, atol=1e-15)
    push = jax.jvp(lambda theta: system(root, theta), (theta,), (u,))[1]
    moved = implicit_motion(lambda unknowns: system(unknowns, theta), root, push, dense_solve(DONE))
    np.testing.assert_allclose(moved[:-1], expected, atol=1e-14)

    tangent = tangent_residual(lambda z: gradient(z, theta), active.project, active.pull, n)
    found = implicit_motion(tangent, n, active.project(u), conjugate_solve(1e-14, 9))
    np.testing.assert_allclose(found.solution, expected, atol=1e-14)
