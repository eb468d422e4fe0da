"""The attack Jacobian at attacks that a search found: differences, bounds (formulas C.8)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv import theory

D, HIDDEN, CLASSES = 4, 6, 3
NORMS = ["l2", "linf", "l1"]


def mlp_loss(x, theta):
    """Cross-entropy of a tanh network, and a well of strength kappa that makes it concave."""
    logits = theta["w2"] @ jnp.tanh(theta["w1"] @ x + theta["b"])
    well = 0.5 * theta["kappa"] * jnp.sum((x - 0.5 - 0.1 * theta["b"][:D]) ** 2)
    return jax.nn.logsumexp(logits) - logits[0] - well


def instances(seed, num, kappa=(0.0, 0.0, 3.0, 30.0), box=True):
    """Parameters, examples, boxes (half of them open) and radii of ``num`` problems."""
    rng = np.random.default_rng(seed)
    theta = dict(
        w1=rng.normal(size=(num, HIDDEN, D)),
        b=0.3 * rng.normal(size=(num, HIDDEN)),
        w2=rng.normal(size=(num, CLASSES, HIDDEN)),
        kappa=np.resize(kappa, num),
    )
    x = rng.uniform(0.1, 0.9, size=(num, D))
    closed = (rng.uniform(size=(num, 1)) < 0.5) & box
    low = np.where(closed, np.zeros((num, D)), -np.inf)
    high = np.where(closed, np.ones((num, D)), np.inf)
    eps = np.resize([0.2, 0.5, 1.0], num)
    return theta, x, low, high, eps


@functools.cache
def solver(norm):
    def one(theta, x, low, high, eps):
        options = dict(norm=norm, eps=eps, bounds=(low, high))
        result = theory.attack_jacobian(mlp_loss, theta, x, num_restarts=2, **options)
        hessian = theory.adversarial_hessian(mlp_loss, theta, x, x_adv=result.x_adv, **options)
        return result, hessian

    return jax.jit(jax.vmap(one))


@functools.cache
def follower(norm):
    def one(theta, x, x_adv, low, high, eps):
        attack = theory.polish_attack(
            mlp_loss, theta, x, x_adv, norm=norm, eps=eps, bounds=(low, high)
        )
        return attack, jax.grad(mlp_loss, argnums=1)(attack.x_adv, theta)

    return jax.jit(jax.vmap(one))


@functools.cache
def solved(norm):
    """200 problems of one norm with their results, computed once for the whole file."""
    with jax.enable_x64(True):
        problem = instances(0, 200)
        result, hessian = solver(norm)(*problem)
        return problem, jax.tree.map(np.asarray, result), jax.tree.map(np.asarray, hessian)


def regular(result):
    return ~np.isin(result.kind, ["degenerate", "unconverged"])


def ravel(tree, lead):
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]
    return np.concatenate([leaf.reshape(*leaf.shape[:lead], -1) for leaf in leaves], axis=-1)


def direction(seed, theta):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), theta)


@pytest.mark.slow
@pytest.mark.parametrize("norm", NORMS)
def test_all_kinds_occur_and_nearly_all_points_are_certified(norm):
    _, result, _ = solved(norm)
    expected = {"l2": {"interior", "sphere", "face"}, "linf": {"interior", "vertex", "face"}}
    assert expected.get(norm, {"interior", "vertex", "face"}) <= set(result.kind)
    ok = regular(result)
    assert ok.mean() > 0.95
    certificates = result.certificates
    for residual in (certificates.gap, certificates.residual, certificates.relative_residual):
        assert np.max(np.abs(residual[ok])) < 1e-10
    assert (certificates.gap >= -1e-12).all()
    assert (certificates.margin[ok] > 0).all() and (certificates.curvature[ok] > 0).all()
    assert np.isfinite(result.norm[ok]).all() and np.isnan(result.norm[~ok]).all()


@pytest.mark.slow
@pytest.mark.parametrize("norm", NORMS)
def test_implicit_derivative_equals_finite_differences_of_repolished_attacks(x64, norm):
    (theta, x, low, high, eps), result, hessian = solved(norm)
    jacobian, ok = ravel(result.jacobian, 2), regular(result)
    # Differences need the active set to survive the step.
    certificates = result.certificates
    ok &= (np.minimum(certificates.margin, certificates.slack) > 1e-3) & (
        certificates.curvature > 1e-2
    )
    assert ok.sum() > 120
    h = 1e-5
    for seed in range(2):
        u = direction(seed, theta)
        ends = [
            follower(norm)(
                jax.tree.map(lambda t, v, s=s: t + s * h * v, theta, u),
                x, result.x_adv, low, high, eps,
            )
            for s in (1, -1)
        ]  # fmt: skip
        (plus, grad_plus), (minus, grad_minus) = ends
        scale = np.linalg.norm(ravel(u, 1), axis=1)
        for got, difference, size in [
            (
                np.einsum("ndm,nm->nd", jacobian, ravel(u, 1)),
                (plus.x_adv - minus.x_adv) / (2 * h),
                result.norm,
            ),
            (
                np.einsum("nkm,nm->nk", hessian.total, ravel(u, 1)),
                (ravel(grad_plus, 1) - ravel(grad_minus, 1)) / (2 * h),
                np.linalg.norm(hessian.total, axis=(1, 2)),
            ),
        ]:
            error = np.linalg.norm(got - difference, axis=1)[ok]
            assert (error <= 1e-6 * (size * scale)[ok] + 1e-8).all(), np.max(error)


@pytest.mark.slow
@pytest.mark.parametrize("norm", NORMS)
def test_jacobian_is_the_projected_formula(norm):
    """D = -T (T^T W T)^+ T^T B, rebuilt in NumPy from the certified point."""
    (theta, x, low, high, eps), result, hessian = solved(norm)
    ok = np.flatnonzero(regular(result))[::7]
    with jax.enable_x64(True):
        slope = jax.grad(mlp_loss)
        derivatives = jax.jit(
            jax.vmap(lambda z, t: (slope(z, t), jax.jacobian(slope)(z, t),
                                   jax.jacobian(slope, argnums=1)(z, t)))
        )(result.x_adv, theta)  # fmt: skip
    g, h, b = np.asarray(derivatives[0]), np.asarray(derivatives[1]), ravel(derivatives[2], 2)
    for i in ok:
        r = result.x_adv[i] - x[i]
        box = [np.maximum(low[i], x[i] - eps[i]), np.minimum(high[i], x[i] + eps[i])]
        box = box if norm == "linf" else [low[i], high[i]]
        held = np.isclose(result.x_adv[i], box[0], rtol=0, atol=1e-9)
        held |= np.isclose(result.x_adv[i], box[1], rtol=0, atol=1e-9)
        order = {"l2": 2, "linf": np.inf, "l1": 1}[norm]
        on_ball = norm != "linf" and np.isclose(np.linalg.norm(r, order), eps[i], atol=1e-9)
        if norm == "l1" and on_ball:
            held |= np.abs(r) < 1e-9
        normals = np.eye(D)[held]
        pull = 0.0
        if on_ball and not held.all():
            n = np.where(held, 0.0, r if norm == "l2" else np.sign(r))
            normals = np.vstack([normals, n])
            pull = (g[i] @ n) / (n @ n) if norm == "l2" else 0.0
        _, s, v = np.linalg.svd(np.vstack([normals, np.zeros((1, D))]))
        t = v[np.sum(s > 1e-9) :].T
        w = t.T @ (h[i] - pull * np.eye(D)) @ t
        expected = -t @ np.linalg.solve(w, t.T @ b[i]) if t.shape[1] else np.zeros_like(b[i])
        got = ravel(result.jacobian, 2)[i]
        np.testing.assert_allclose(got, expected, atol=1e-9 * (1 + np.abs(expected).max()))
        curvature = np.linalg.eigvalsh(-w).min() if t.shape[1] else np.inf
        np.testing.assert_allclose(result.certificates.curvature[i], curvature, rtol=1e-8)
        motion = b[i].T @ expected
        np.testing.assert_allclose(
            hessian.motion[i], motion, atol=1e-8 * (1 + np.abs(motion).max())
        )


@pytest.mark.slow
@pytest.mark.parametrize("norm", NORMS)
def test_bounds_are_never_violated(norm):
    """On all regular points norm(D) <= sharp <= paper; moving attacks only add curvature."""
    with jax.enable_x64(True):
        results = [solved(norm)[1:]]
        results += [jax.tree.map(np.asarray, solver(norm)(*instances(s, 200))) for s in (1, 2)]
    for result, hessian in results:
        ok = regular(result)
        assert (result.norm[ok] <= result.sharp_bound[ok] * (1 + 1e-10) + 1e-14).all()
        assert (result.sharp_bound[ok] <= result.paper_bound[ok] * (1 + 1e-10) + 1e-14).all()
        motion = hessian.motion[ok]
        assert np.abs(motion - np.swapaxes(motion, 1, 2)).max() <= 1e-7 * np.abs(motion).max()
        lowest = np.linalg.eigvalsh(0.5 * (motion + np.swapaxes(motion, 1, 2)))[:, 0]
        assert (lowest >= -1e-10 * (1 + np.linalg.norm(motion, axis=(1, 2)))).all()
        vertex = result.kind == "vertex"
        assert (result.norm[vertex] == 0).all()
        sphere = result.kind == "sphere"
        # E1: a strict maximiser has det K of sign (-1)^d; E11: sigma_min(K) <= min(1, c_T).
        assert (result.bordered_det_sign[sphere] == (-1) ** D).all()
        sigma = result.bordered_sigma[sphere]
        assert (sigma <= np.minimum(1, result.certificates.curvature[sphere]) + 1e-12).all()
        interior = result.kind == "interior"
        np.testing.assert_allclose(
            result.paper_bound[interior], result.sharp_bound[interior], rtol=1e-10
        )
        assert np.isinf(result.paper_bound[(result.kind == "face") | vertex]).all()


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_hessian_of_the_differentiable_loss_is_the_true_one(x64, norm):
    (theta, x, low, high, eps), result, hessian = solved(norm)
    wanted = ["sphere", "interior", "face"] if norm == "l2" else ["vertex", "face"]
    picked = [np.flatnonzero(result.kind == kind)[0] for kind in wanted]
    box = lambda i: (low[i], high[i])

    def both(theta, x, low, high, eps):
        options = dict(norm=norm, eps=eps, bounds=(low, high), num_restarts=2)
        attack = theory.differentiable_attack(mlp_loss, **options)
        loss = theory.adversarial_loss(mlp_loss, **options)
        return jax.jacobian(attack)(theta, x), jax.hessian(loss)(theta, x)

    both = jax.jit(both)
    for i in picked:
        one = jax.tree.map(lambda leaf, i=i: leaf[i], theta)
        jacobian, second = both(one, x[i], *box(i), eps[i])
        expected = jax.tree.map(lambda leaf, i=i: leaf[i], result.jacobian)
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, atol=1e-8, rtol=1e-8), jacobian, expected
        )
        total = np.concatenate([ravel(second[name], np.ndim(one[name])).reshape(one[name].size, -1)
                                for name in sorted(one)])  # fmt: skip
        np.testing.assert_allclose(total, hessian.total[i], atol=1e-8 * np.abs(total).max())
