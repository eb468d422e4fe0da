"""The attack Jacobian at known maximisers: three ways to compute it, bounds, and wrong ones."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv import theory
from tests.helpers.known_attacks import D, Known, known, loss, ravel

NORMS = ["l2", "linf"]
NUM, COMPARED = 3000, 48


@functools.cache
def solved(norm: str):
    """Thousands of problems with their Jacobians, Hessians of the loss and mixed derivatives."""
    with jax.enable_x64(True):
        problems = known(0, norm, NUM)

        def one(theta, x, z, eps, low, high):
            result = theory.attack_jacobian(
                loss, theta, x, norm=norm, eps=eps, bounds=(low, high), x_adv=z
            )
            slope = jax.grad(loss)
            return result, jax.jacobian(slope)(z, theta), jax.jacobian(slope, argnums=1)(z, theta)

        result, h, b = jax.jit(jax.vmap(one))(*problems[:6])
        return problems, jax.tree.map(np.asarray, result), np.asarray(h), ravel(b, 2)


def chosen(norm) -> np.ndarray:
    """Places of the problems that are compared."""
    return np.flatnonzero(solved(norm)[1].kind != "degenerate")[:COMPARED]


def some(norm) -> Known:
    return jax.tree.map(lambda leaf: leaf[chosen(norm)], solved(norm)[0])


def direction(seed, theta):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), theta)


@functools.cache
def differences(norm) -> np.ndarray:
    """D u by central differences of attacks that are polished anew."""
    with jax.enable_x64(True):
        problems, h = some(norm), 1e-5
        u = direction(1, problems.theta)

        def follow(theta, x, z, eps, low, high):
            attack = theory.polish_attack(loss, theta, x, z, norm=norm, eps=eps, bounds=(low, high))
            return attack.x_adv

        follow = jax.jit(jax.vmap(follow))
        ends = [
            follow(jax.tree.map(lambda t, v, s=s: t + s * h * v, problems.theta, u), *problems[1:6])
            for s in (1, -1)
        ]
        return np.asarray((ends[0] - ends[1]) / (2 * h))


@functools.cache
def unrolled(norm: str) -> np.ndarray:
    """D u by differentiating a thousand iterations of projected-gradient ascent."""

    def project(z, x, eps, low, high):
        if norm == "linf":
            return jnp.clip(z, jnp.maximum(low, x - eps), jnp.minimum(high, x + eps))
        # Dykstra's alternation between the ball and the box, started at z.
        ball = lambda v: x + (v - x) * jnp.minimum(1.0, eps / jnp.linalg.norm(v - x))

        def alternate(_, state):
            z, p, q = state
            y = ball(z + p)
            p = z + p - y
            new = jnp.clip(y + q, low, high)
            return new, p, y + q - new

        return jax.lax.fori_loop(0, 40, alternate, (z, jnp.zeros(D), jnp.zeros(D)))[0]

    def one(theta, u, x, z, eps, low, high):
        def ascend(theta):
            climb = lambda _, z: project(z + 0.1 * jax.grad(loss)(z, theta), x, eps, low, high)
            return jax.lax.fori_loop(0, 400, climb, z)

        return jax.jvp(ascend, (theta,), (u,))[1]

    with jax.enable_x64(True):
        problems = some(norm)
        run = jax.jit(jax.vmap(one))
        return np.asarray(run(problems.theta, direction(1, problems.theta), *problems[1:6]))


def implicit(norm: str, jacobian: np.ndarray | None = None) -> np.ndarray:
    """D u from a Jacobian of shape (N, d, m), by default the library's."""
    if jacobian is None:
        jacobian = ravel(solved(norm)[1].jacobian, 2)[chosen(norm)]
    return np.einsum("ndm,nm->nd", jacobian, ravel(direction(1, some(norm).theta), 1))


def assert_same_derivative(found: np.ndarray, expected: np.ndarray, *, rtol: float = 1e-6):
    """Relative to the largest motion, one problem at a time."""
    sizes = np.linalg.norm(expected, axis=1)
    error = np.linalg.norm(found - expected, axis=1)
    assert (error <= rtol * sizes + 1e-9).all(), np.max(error / np.maximum(sizes, 1e-9))


@pytest.mark.parametrize("norm", NORMS)
def test_every_kind_is_certified(norm):
    problems, result, _, _ = solved(norm)
    kinds, counts = np.unique(result.kind, return_counts=True)
    wanted = {"l2": {"interior", "sphere", "face"}, "linf": {"interior", "vertex", "face"}}
    found = {k for k, n in zip(kinds, counts, strict=True) if n > NUM / 5}
    assert found >= wanted[norm]
    # Every point is a KKT point; where the well is too weak for a maximum, it is labelled.
    assert not (result.kind == "unconverged").any()
    assert np.abs(result.certificates.gap).max() < 1e-10
    assert result.certificates.residual.max() < 1e-10
    regular = result.kind != "degenerate"
    assert regular.mean() > 0.97
    assert (result.certificates.curvature[regular] > 0).all()
    assert np.isnan(result.norm[~regular]).all() and np.isfinite(result.norm[regular]).all()
    if norm == "l2":
        np.testing.assert_allclose(result.certificates.multiplier, problems.multiplier, atol=1e-10)


@pytest.mark.parametrize("norm", NORMS)
def test_implicit_unrolled_and_finite_differences_agree(norm):
    assert_same_derivative(implicit(norm), differences(norm))
    assert_same_derivative(implicit(norm), unrolled(norm))
    moving = np.linalg.norm(differences(norm), axis=1) > 1e-3
    assert moving.sum() > COMPARED / 2  # they agree on more than 0 = 0


def tangent(problems, i):
    """An orthonormal basis of the tangent space, from the construction alone."""
    normals = list(np.eye(D)[problems.fixed[i]])
    if problems.multiplier[i]:
        r = np.where(problems.fixed[i], 0.0, problems.x_adv[i] - problems.x[i])
        normals.append(r)
    _, s, v = np.linalg.svd(np.vstack([*normals, np.zeros((1, D))]))
    return v[np.sum(s > 1e-9) :].T


def rebuilt(norm, *, sign=-1.0, pull=1.0, active=True) -> np.ndarray:
    """-T (T^T W T)^-1 T^T B in NumPy, right or with something wrong in it."""
    problems, _, h, b = solved(norm)
    rows = []
    for i in chosen(norm):
        t = tangent(problems, i) if active else np.eye(D)
        w = h[i] - pull * problems.multiplier[i] / problems.eps[i] * np.eye(D)
        inverse = np.linalg.solve(t.T @ w @ t, t.T @ b[i]) if t.shape[1] else np.zeros((0, 1))
        rows.append(sign * t @ inverse if t.shape[1] else np.zeros_like(b[i]))
    return np.array(rows)


@pytest.mark.parametrize("norm", NORMS)
def test_jacobian_is_the_projected_formula(norm):
    found = ravel(solved(norm)[1].jacobian, 2)[chosen(norm)]
    np.testing.assert_allclose(found, rebuilt(norm), atol=1e-9)


WRONG = {
    "sign of B": dict(sign=1.0),
    "missing multiplier": dict(pull=0.0),
    "no active set": dict(active=False),
}


@pytest.mark.parametrize("mistake", WRONG)
@pytest.mark.parametrize("norm", NORMS)
def test_a_wrong_jacobian_is_noticed(norm, mistake):
    """What the comparisons above say about Jacobians with one mistake in them."""
    if norm == "linf" and mistake == "missing multiplier":
        pytest.skip("Linf has no multiplier in W")
    wrong = implicit(norm, rebuilt(norm, **WRONG[mistake]))
    for reference in (differences(norm), unrolled(norm)):
        with pytest.raises(AssertionError):
            assert_same_derivative(wrong, reference, rtol=1e-2)


@pytest.mark.parametrize("norm", NORMS)
def test_bounds_hold_on_thousands_of_points_and_are_attained(norm):
    problems, result, h, b = solved(norm)
    ok = result.kind != "degenerate"
    problems, result, h, b = jax.tree.map(lambda leaf: leaf[ok], (problems, result, h, b))
    assert len(b) > 0.97 * NUM
    slack = 1 + 1e-10
    assert (result.norm <= result.sharp_bound * slack).all()
    assert (result.sharp_bound <= result.paper_bound * slack).all()
    certificates = result.certificates
    # One tangent direction: equality (formulas C.8, tightness).
    line = certificates.tangent_dim == 1
    assert line.sum() > 40
    np.testing.assert_allclose(result.norm[line], result.sharp_bound[line], rtol=1e-10)
    vertex = result.kind == "vertex"
    assert (result.norm[vertex] == 0).all() and (result.sharp_bound[vertex] == 0).all()
    interior = result.kind == "interior"
    lemma4 = np.linalg.norm(b[interior], 2, axis=(1, 2)) / np.linalg.eigvalsh(-h[interior])[:, 0]
    np.testing.assert_allclose(result.paper_bound[interior], lemma4, rtol=1e-10)
    np.testing.assert_allclose(result.sharp_bound[interior], lemma4, rtol=1e-10)
    # (CURV): B^T D is positive semidefinite; its largest eigenvalues by D^T (-W) D.
    motion = np.einsum("ndm,nem->nde", b, ravel(result.jacobian, 2))
    lowest = np.linalg.eigvals(motion).real.min(axis=1)  # those of B^T D that are not 0
    assert lowest.min() > -1e-9
    if norm == "l2":
        sphere = result.kind == "sphere"
        n = (problems.x_adv - problems.x)[sphere] / problems.eps[sphere, None]
        pull = (problems.multiplier / problems.eps)[sphere, None, None]
        w = h[sphere] - pull * (np.eye(D) - n[:, :, None] * n[:, None, :])
        bordered = np.zeros((sphere.sum(), D + 1, D + 1))
        bordered[:, 0, 1:] = bordered[:, 1:, 0] = n
        bordered[:, 1:, 1:] = w
        sigma = np.linalg.svd(bordered, compute_uv=False)[:, -1]
        np.testing.assert_allclose(result.bordered_sigma[sphere], sigma, rtol=1e-9)
        # (DET), E1 and E11.
        assert (result.bordered_det_sign[sphere] == np.sign(np.linalg.det(bordered))).all()
        assert (result.bordered_det_sign[sphere] == (-1) ** D).all()
        assert (sigma <= np.minimum(1, certificates.curvature[sphere]) + 1e-12).all()
        lemma5 = np.linalg.norm(b[sphere], 2, axis=(1, 2)) / sigma
        np.testing.assert_allclose(result.paper_bound[sphere], lemma5, rtol=1e-9)
