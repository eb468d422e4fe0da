"""Optimal attacks: known answers, certificates, kinds and failure modes (formulas C.7)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv import theory

INF = jnp.inf


def quadratic(x, theta):
    """-(x - M th)^T Q (x - M th) / 2."""
    r = x - theta["m"] @ theta["t"]
    return -0.5 * theta["scale"] * r @ theta["q"] @ r


def problem(seed, *, identity, size=3, params=4, far=1.0):
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(size, size))
    q = np.eye(size) if identity else root @ root.T + np.eye(size)
    theta = dict(m=far * rng.normal(size=(size, params)), t=rng.normal(size=params), q=q, scale=1.0)
    return theta, rng.normal(size=size)


@functools.cache
def solver(norm, num_restarts=1):
    def one(theta, x, eps, low, high):
        return theory.attack_jacobian(
            quadratic, theta, x, norm=norm, eps=eps, bounds=(low, high), num_restarts=num_restarts
        )

    return jax.jit(one)


def solve(norm, theta, x, eps, low=-INF, high=INF):
    return solver(norm)(theta, x, jnp.asarray(float(eps)), jnp.asarray(low), jnp.asarray(high))


def test_t1_interior(x64):
    theta, _ = problem(0, identity=False)
    x = theta["m"] @ theta["t"] + 0.1
    result = solve("l2", theta, x, 1.0)
    assert result.kind == "interior"
    np.testing.assert_allclose(result.x_adv, theta["m"] @ theta["t"], atol=1e-12)
    np.testing.assert_allclose(result.jacobian["t"], theta["m"], atol=1e-10)
    np.testing.assert_allclose(
        result.certificates.curvature, np.linalg.eigvalsh(theta["q"])[0], rtol=1e-10
    )


def test_t2_sphere_attains_the_sharp_bound(x64):
    theta, x = problem(1, identity=True, far=3.0)
    eps, shift = 0.7, theta["m"] @ theta["t"] - x
    rho = np.linalg.norm(shift)
    n = shift / rho
    assert rho > eps
    result = solve("l2", theta, x, eps)
    assert result.kind == "sphere"
    np.testing.assert_allclose(result.x_adv, x + eps * n, atol=1e-12)
    tangent = np.eye(3) - np.outer(n, n)
    np.testing.assert_allclose(result.jacobian["t"], eps / rho * tangent @ theta["m"], atol=1e-12)
    np.testing.assert_allclose(result.certificates.multiplier, rho - eps, rtol=1e-12)
    np.testing.assert_allclose(result.certificates.curvature, rho / eps, rtol=1e-12)
    # W_T is a multiple of the identity: equality in (SHARP).
    np.testing.assert_allclose(result.norm, result.sharp_bound, rtol=1e-10)
    # dmu/dt = n^T (H D + B): mu = |M t - x| - eps.
    np.testing.assert_allclose(result.multiplier_jacobian["t"], n @ theta["m"], atol=1e-10)


@pytest.mark.slow
def test_t3_linf_is_a_clip(x64):
    for seed in range(5):
        theta, x = problem(seed, identity=True)
        target = theta["m"] @ theta["t"]
        eps = 0.8
        result = solve("linf", theta, x, eps)
        np.testing.assert_allclose(result.x_adv, np.clip(target, x - eps, x + eps), atol=1e-12)
        free = np.abs(target - x) < eps
        np.testing.assert_allclose(
            result.jacobian["t"], np.where(free[:, None], theta["m"], 0.0), atol=1e-12
        )
        expected = {0: "vertex", 3: "interior"}.get(int(free.sum()), "face")
        assert result.kind == expected


SLOW = pytest.mark.slow


@pytest.mark.parametrize("size", [1, 2, 5])
@SLOW
def test_t4_linear_model_is_tight(x64, size):
    def loss(x, theta):
        return jnp.logaddexp(0.0, -theta @ x)

    rng = np.random.default_rng(size)
    theta, x = rng.normal(size=size), rng.normal(size=size)
    for norm, p in [("l2", 2), ("linf", INF)][: 1 if size == 5 else 2]:
        result = theory.attack_jacobian(loss, theta, x, norm=norm, eps=0.6, num_restarts=1)
        attack = theory.linear_attack(theta, x, 1, p=p, eps=0.6)
        np.testing.assert_allclose(result.x_adv, attack, atol=1e-12)
        jacobian = theory.linear_attack_jacobian(theta, 1, p=p, eps=0.6)
        np.testing.assert_allclose(result.jacobian, jacobian, atol=1e-10)
        assert result.kind == ("sphere" if norm == "l2" and size > 1 else "vertex")
        if result.kind == "sphere":
            expected = 0.6 / np.linalg.norm(theta)
            np.testing.assert_allclose([result.norm, result.sharp_bound], expected, rtol=1e-10)
            assert result.bordered_sigma <= 1 and result.paper_bound >= expected
            # E1: for odd d the printed hypothesis det K > 0 fails at a strict maximum.
            assert result.bordered_det_sign == (-1) ** size
            assert result.paper_applies == (size % 2 == 0)
        else:
            assert result.norm == 0


def test_t6_a_saddle_has_positive_bordered_determinant(x64):
    """Erratum E1: d = 4, det K > 0, and yet no maximum: W_T = diag(-1, 1, 1)."""
    theta = jnp.array([-1.0, 1.0, 1.0])

    def loss(x, theta):
        return x[0] + 0.5 * jnp.sum((theta + 1) * x[1:] ** 2) + 0.0 * x[0] ** 2

    saddle = jnp.array([1.0, 0.0, 0.0, 0.0])
    result = theory.attack_jacobian(loss, theta, jnp.zeros(4), norm="l2", eps=1.0, x_adv=saddle)
    assert result.bordered_det_sign == 1 and result.certificates.curvature < -0.9
    assert result.kind == "degenerate" and np.isnan(result.norm)
    assert not result.paper_applies
    # The same with all curvatures negative is a maximum with det K > 0, d = 4.
    result = theory.attack_jacobian(
        loss, jnp.array([-1.0, -2.0, -1.5]), jnp.zeros(4), norm="l2", eps=1.0, x_adv=saddle
    )
    assert result.bordered_det_sign == 1 and result.kind == "sphere" and result.paper_applies


@SLOW
def test_trust_region_oracle_and_theorem_u2(x64):
    """Secular equation as the oracle for the L2 ball; Lipschitz constant of formulas C.3 (U2)."""
    rng = np.random.default_rng(5)
    num, size, eps = 400, 3, 0.8
    root = rng.normal(size=(num, size, size))
    q = root @ np.swapaxes(root, 1, 2) + 0.5 * np.eye(size)
    theta = dict(m=rng.normal(size=(num, size, 2)), t=2 * rng.normal(size=(num, 2)), q=q)
    theta["scale"] = np.ones(num)
    moved = dict(theta, t=theta["t"] + 0.3 * rng.normal(size=(num, 2)))
    x = np.zeros((num, size))

    def one(theta, x):
        return theory.optimal_attack(
            jax.random.key(1), quadratic, theta, x, norm="l2", eps=eps, num_restarts=1
        )

    run = jax.jit(jax.vmap(one))
    first, second = run(theta, x), run(moved, x)
    target = np.einsum("nij,nj->ni", theta["m"], theta["t"])
    # x = (Q + lambda I)^{-1} Q target with |x| = eps, lambda by bisection.
    values, vectors = np.linalg.eigh(q)
    b = np.einsum("nij,ni->nj", vectors, np.einsum("nij,nj->ni", q, target))
    low, high = np.zeros(num), np.full(num, 1e4)
    for _ in range(200):
        middle = 0.5 * (low + high)
        big = np.linalg.norm(b / (values + middle[:, None]), axis=1) > eps
        low, high = np.where(big, middle, low), np.where(big, high, middle)
    oracle = np.einsum("nij,nj->ni", vectors, b / (values + low[:, None]))
    np.testing.assert_allclose(first.x_adv, oracle, atol=1e-8)
    # (U): -H >= c I on the ball, so the attack is C_thx/c-Lipschitz, whatever the constraint.
    apart = np.linalg.norm(np.asarray(first.x_adv) - np.asarray(second.x_adv), axis=1)
    cross = np.linalg.norm(q @ theta["m"], 2, axis=(1, 2))
    distance = np.linalg.norm(theta["t"] - moved["t"], axis=1)
    assert (apart <= cross / values[:, 0] * distance * (1 + 1e-9) + 1e-9).all()
    assert (first.certificates.gap >= -1e-12).all()


@SLOW
def test_flip_of_a_sign_is_a_jump_or_a_continuous_motion(x64):
    """Formulas C.4: H_ii >= 0 jumps by 2 eps when g_i changes sign, H_ii < 0 moves continuously."""

    def loss(x, theta):
        return theta["t"] * x[0] + 0.5 * theta["curvature"] * x[0] ** 2 + x[1]

    def one(t, curvature):
        theta = dict(t=t, curvature=curvature)
        return theory.optimal_attack(
            jax.random.key(0), loss, theta, jnp.zeros(2), norm="linf", eps=0.5, num_restarts=4
        )

    run = jax.jit(jax.vmap(one))
    t = jnp.linspace(-0.4, 0.4, 81) + 1e-3
    position = np.asarray(run(t, jnp.full(81, -0.5)).x_adv[:, 0])
    np.testing.assert_allclose(position, np.clip(t / 0.5, -0.5, 0.5), atol=1e-9)
    for curvature in (0.0, 0.3):
        position = run(t, jnp.full(81, curvature)).x_adv[:, 0]
        np.testing.assert_allclose(position, 0.5 * np.sign(t), atol=1e-12)
    tied = run(jnp.array([0.0]), jnp.array([0.3]))
    np.testing.assert_allclose(tied.value_gap, 0.0, atol=1e-12)  # two global maxima: a kink


@pytest.mark.parametrize(
    "norm", ["l2", pytest.param("linf", marks=SLOW), pytest.param("l1", marks=SLOW)]
)
def test_degenerate_problems_are_labelled(x64, norm):
    theta, x = problem(7, identity=True)
    point = dict(theta, scale=1.0)
    # theta = 0 (no gradient at all), eps = 0, a target exactly on the boundary.
    result = solve(norm, jax.tree.map(jnp.zeros_like, theta), x, 0.5)
    assert result.kind == "degenerate" and np.isnan(result.jacobian["t"]).all()
    result = solve(norm, point, x, 0.0)
    assert result.kind == "vertex" and (result.norm, result.sharp_bound) == (0, 0)
    np.testing.assert_array_equal(result.x_adv, x)
    center = theta["m"] @ theta["t"] - 0.5 * np.eye(3)[0]
    result = solve(norm, point, center, 0.5)
    assert result.kind == "degenerate"
    # A singular input Hessian: one direction in which nothing holds the attack.
    flat = dict(theta, q=np.diag([1.0, 1.0, 0.0]))
    result = solve(norm, flat, theta["m"] @ theta["t"] + 0.01, 0.5)
    assert result.kind == "degenerate" and np.isinf(result.sharp_bound)


@pytest.mark.parametrize(
    ("scale", "size"),
    [
        (1e-12, 1e6),
        pytest.param(1e-12, 1e-6, marks=SLOW),
        pytest.param(1e12, 1e-6, marks=SLOW),
        pytest.param(1e12, 1e6, marks=SLOW),
    ],
)
def test_huge_and_tiny_scales(x64, scale, size):
    theta, x = problem(1, identity=True, far=3.0)
    base = solve("l2", theta, x, 0.7)
    scaled = dict(theta, m=size * theta["m"], scale=scale)
    result = solve("l2", scaled, size * x, size * 0.7)
    assert result.kind == "sphere" == base.kind
    np.testing.assert_allclose(result.jacobian["t"], size * base.jacobian["t"], rtol=1e-9)
    # The identity as Q makes (SHARP) an equality. The leaf "scale" moves nothing, but at 1e-12 the
    # rounding of that zero is divided by it.
    np.testing.assert_allclose(result.norm, result.sharp_bound, rtol=1e-7)
    curvature = scale * base.certificates.curvature
    np.testing.assert_allclose(result.certificates.curvature, curvature, rtol=1e-9)


def test_a_kink_that_satisfies_kkt_is_not_differentiated(x64):
    """The one-sided rule of relu hides that the maximiser follows theta: D would come out as 0."""

    def loss(x, theta):
        r = x[0] - theta[0]
        return -jax.nn.relu(r) - jax.nn.relu(-r) - x[0] ** 2

    result = theory.attack_jacobian(
        loss, jnp.zeros(1), jnp.zeros(1), norm="linf", eps=1.0, x_adv=jnp.zeros(1)
    )
    assert result.certificates.relative_residual < 1e-12 and result.certificates.kink > 1e-3
    assert result.kind == "degenerate" and np.isnan(result.jacobian).all()


def test_unconverged_and_infeasible_attacks_are_labelled(x64):
    theta, x = problem(1, identity=True, far=3.0)
    good = solve("l2", theta, x, 0.7).x_adv
    given = jax.jit(
        lambda x_adv: theory.attack_jacobian(quadratic, theta, x, norm="l2", eps=0.7, x_adv=x_adv)
    )
    assert given(good).kind == "sphere"
    for bad in (x, good + 1e-3, x + 1.01 * (good - x), x + 0.99 * (good - x)):
        result = given(bad)
        assert result.kind == "unconverged" and np.isnan(result.jacobian["m"]).all()


@SLOW
def test_a_loss_that_is_nan_is_unconverged(x64):
    x = np.ones(3)
    nan = theory.polish_attack(
        lambda x, t: jnp.log(t - 1e9 + jnp.sum(x)), jnp.zeros(()), x, x, norm="l2", eps=0.7
    )
    assert nan.kind == "unconverged"


@SLOW
def test_polishing_that_leaves_for_another_maximum_is_labelled(x64):
    """cos has a maximum in each period; from near a minimum a step may cross others."""

    def loss(x, theta):
        return jnp.cos(2 * jnp.pi * x[0]) + theta * x[0]

    run = jax.jit(
        lambda start: theory.polish_attack(
            loss, jnp.asarray(0.01), jnp.zeros(1), start, norm="linf", eps=2.2
        )
    )
    for start in np.linspace(-2, 2, 41):
        found = run(jnp.array([start]))
        end = float(found.x_adv[0])
        np.testing.assert_allclose(found.distance, abs(end - start), atol=1e-12)
        values = [float(loss(jnp.array([v]), 0.01)) for v in np.linspace(start, end, 200)]
        np.testing.assert_allclose(found.gain, values[-1] - values[0], atol=1e-12)
        assert found.gain >= -1e-12
        fall = np.max(np.maximum.accumulate(values) - values)
        assert bool(found.switched) == (fall > 1e-3), start
        if not found.switched:
            assert abs(end - start) < 0.55
    # On the sphere the way is the arc: its chord would be lower, and is no valley.
    slope = lambda x, theta: theta @ x
    found = theory.polish_attack(
        slope, jnp.array([1.0, 0.0]), jnp.zeros(2), jnp.array([0.0, 1.0]), norm="l2", eps=1.0
    )
    assert found.kind == "sphere" and not found.switched
    np.testing.assert_allclose(found.distance, np.sqrt(2), rtol=1e-9)


def test_misuse_is_an_error_that_says_what_to_do():
    loss = lambda x, theta: -jnp.sum((x - theta) ** 2)
    x, theta = np.zeros(2), np.ones(2)
    cases = [
        (dict(norm="l3"), {}, "norm='l3' is not one of"),
        (dict(eps=-1.0), {}, "eps=-1.0 must be a finite number"),
        (dict(bounds=(0.5, 1.0)), {}, "x lies outside bounds"),
        (dict(bounds=(np.zeros(3), 1.0)), {}, r"a bound has shape \(3,\)"),
        (dict(x_adv=np.zeros(3)), {}, r"x_adv has shape \(3,\)"),
        (dict(x_adv=np.full(2, np.nan)), {}, "x_adv contains values that are not finite"),
        ({}, dict(loss=lambda x, t: x - t), "must be a scalar"),
        ({}, dict(loss=lambda x, t: jnp.sum(x).astype("float32")), "loss returns float32"),
        ({}, dict(theta=np.ones(2, int)), "theta has a leaf of dtype int"),
        ({}, dict(x=np.full(2, np.inf)), "x contains values that are not finite"),
    ]
    for options, changed, message in cases:
        arguments = dict(loss=loss, theta=theta, x=x) | changed
        options = dict(norm="l2", eps=0.5) | options
        with pytest.raises(ValueError, match=message):
            theory.attack_jacobian(**arguments, **options)
    with pytest.raises(ValueError, match=r"num_restarts=-1"):
        theory.optimal_attack(
            jax.random.key(0), loss, theta, x, norm="l2", eps=1.0, num_restarts=-1
        )
    with pytest.raises(ValueError, match=r"inside jax\.jit.*enable_x64"):
        jax.jit(lambda t: theory.attack_jacobian(loss, t, x, norm="l2", eps=1.0))(theta)


def test_float64_does_not_leak():
    loss = lambda x, theta: -jnp.sum((x - theta["t"]) ** 2)
    theta, x_adv = dict(t=jnp.ones(2, jnp.float32)), np.full(2, 0.5, np.float32)
    result = theory.attack_jacobian(loss, theta, jnp.zeros(2), norm="linf", eps=0.5, x_adv=x_adv)
    assert result.kind == "vertex" and result.x_adv.tolist() == [0.5, 0.5]
    for leaf in jax.tree.leaves(result._replace(kind_code=result.value)):
        assert isinstance(leaf, np.ndarray)
    assert result.jacobian["t"].dtype == np.float64
    assert not jax.config.jax_enable_x64 and jnp.ones(1).dtype == jnp.float32


def test_images_keep_their_shape(x64):
    loss = lambda x, theta: -0.5 * jnp.sum((x - theta["a"][:, None, None]) ** 2)
    theta = dict(a=jnp.array([3.0, 0.1]))
    result = theory.attack_jacobian(
        loss, theta, jnp.full((2, 2, 1), 0.5), norm="linf", eps=0.45, bounds=(0.0, 1.0),
        x_adv=jnp.array([[[0.95], [0.95]], [[0.1], [0.1]]]),
    )  # fmt: skip
    assert result.kind == "face" and result.x_adv.shape == (2, 2, 1)
    assert result.jacobian["a"].shape == (2, 2, 1, 2)
    np.testing.assert_allclose(result.jacobian["a"][1, :, 0], [[0, 1], [0, 1]], atol=1e-12)
    np.testing.assert_allclose(result.jacobian["a"][0], 0.0, atol=0)
