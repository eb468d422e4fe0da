"""Smoothness diagnostics against the closed forms of the toy and the linear model; formulas I."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv import theory

EPS = theory.TOY_EPS
POINT = np.array(theory.TOY_POINT)


def jitted(model, norm):
    return jax.jit(lambda theta: theory.toy_gradient(theta, model=model, norm=norm))


GRADIENT = {(m, n): jitted(m, n) for m in ("linear", "swish") for n in ("l2", "linf")}


@jax.jit
def pgd_gradient(theta):
    """What training with PGD-10, step eps/4, takes on the swish toy, from an erratic start."""
    start = EPS * jnp.sin(1e5 * theta)
    options = {"num_steps": 10, "step_size": EPS / 4, "keep_best": False, "start": start}
    delta = theory.toy_pgd(theta, norm="linf", **options)
    return theory.toy_gradient(theta, model="swish", norm="linf", delta=delta)


def phi_loss(x, theta):
    return jax.nn.softplus(-theta @ x)


def linear_attack(theta, norm):
    if norm == "linf":
        return POINT - EPS * np.sign(theta)
    return POINT - EPS * theta / np.linalg.norm(theta)


def linear_gradient(x, theta):
    return -np.asarray(x) / (1 + np.exp(theta @ x))


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_exact_attacks_pass_the_audit_and_nearly_attain_the_bound(norm):
    rng = np.random.default_rng(0)
    checkpoints = list(rng.uniform(-2, 2, size=(60, 2)))
    w = float(theory.toy_weak_convexity(norm=norm))
    audit = theory.monotonicity_audit(
        GRADIENT["swish", norm], checkpoints, weak_convexity=w, pairs="all"
    )
    assert audit.quotients.shape == (60 * 59 // 2,)
    assert not audit.violations.any()
    assert -w <= audit.worst < -0.3 * w
    # A smaller modulus is refuted: the bound is not vacuous.
    wrong = theory.monotonicity_audit(
        GRADIENT["swish", norm], checkpoints, weak_convexity=0.2 * w, pairs="all"
    )
    assert wrong.violations.any()


def test_pgd_fails_the_audit():
    """Formulas A.9: PGD-10 on the swish toy goes below -1.158; exact attacks there do not."""
    rng = np.random.default_rng(1)
    checkpoints = []
    for theta in rng.uniform(-2, 2, size=(100, 2)):
        checkpoints += [theta, theta + rng.uniform(-0.02, 0.02, size=2)]
    w = float(theory.toy_weak_convexity(norm="linf"))
    found = theory.monotonicity_audit(pgd_gradient, checkpoints, weak_convexity=w)
    exact = theory.monotonicity_audit(GRADIENT["swish", "linf"], checkpoints, weak_convexity=w)
    assert not exact.violations.any()
    assert found.violations.any()
    assert found.worst < -1.5 * w
    np.testing.assert_array_equal(found.violations, found.quotients < found.bound)


@pytest.mark.parametrize("model", ["linear", "swish"])
def test_weak_convexity_of_a_segment(model):
    loss = lambda x, theta: theory.toy_margin_loss(theta @ x, model=model)
    rng = np.random.default_rng(1)
    for a, b in rng.uniform(-2, 2, size=(6, 2, 2)):
        attacks = [
            POINT + np.asarray(theory.toy_attack(t, model=model, norm="linf").delta) for t in (a, b)
        ]
        w = theory.segment_weak_convexity(loss, a, b, attacks, num_points=65)
        gradients = [np.asarray(theory.toy_gradient(t, model=model, norm="linf")) for t in (a, b)]
        quotient = (gradients[1] - gradients[0]) @ (b - a) / np.sum((b - a) ** 2)
        assert quotient >= -w - 1e-4
        assert w <= float(theory.toy_weak_convexity(model=model, norm="linf")) + 1e-12
        if model == "linear":
            assert w == 0.0


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_parts_of_the_smoothness_add_up_and_respect_the_theorems(norm):
    angles = np.linspace(-2.0, 1.0, 41)  # across both axes
    checkpoints = list(np.stack([np.cos(angles), (1 + 0.1 * angles) * np.sin(angles)], axis=1))
    split = theory.smoothness_along(
        linear_gradient,
        lambda t: linear_attack(t, norm),
        checkpoints,
        bounds=(POINT - EPS, POINT + EPS),
        learning_rate=0.1,
    )
    reach = np.linalg.norm(np.abs(POINT) + EPS)
    assert (split.parameter <= reach**2 / 4 + 1e-12).all()  # C_thth
    assert (split.total <= split.parameter + split.attack + 1e-12).all()
    np.testing.assert_allclose(split.stability, split.total * 0.05, rtol=1e-14)
    signs = [np.sign(t) for t in checkpoints]
    same = np.array([(a == b).all() for a, b in zip(signs[:-1], signs[1:], strict=True)])
    lengths = np.array([np.linalg.norm(t) for t in checkpoints])
    if norm == "l2":
        shorter = np.minimum(lengths[:-1], lengths[1:])
        assert (split.attack_motion <= EPS / shorter * (1 + 1e-12)).all()  # Lemma 2
        assert (split.attack > 0).all()
        assert ((split.attack_share > 0) & (split.attack_share < 1)).any()
    else:
        assert 0 < same.sum() < len(same)  # the path crosses an axis
        assert (split.attack[same] == 0).all()  # Lemma 3, Theorem 2
        assert (split.flips[same] == 0).all()
        crossing = ~same
        np.testing.assert_allclose(
            split.attack_motion[crossing] * split.step[crossing],
            2 * EPS * np.sqrt(2 * split.flips[crossing]),
            rtol=1e-12,
        )
        assert (split.attack_motion[crossing] > 3 * split.attack_motion[same].max()).all()


def test_smoothness_of_pytrees_in_float32():
    thetas = [{"w": np.array([1.0, 2.0], np.float32), "b": np.float32(b)} for b in (0.0, 1.0)]
    split = theory.smoothness_along(
        lambda x, t: {"w": x * t["b"], "b": jnp.sum(x)}, lambda t: jnp.ones(2) * t["b"], thetas
    )
    # Before (0, 0, 0), frozen (0, 0, 0), after (1, 1, 2).
    np.testing.assert_allclose(split.total, [np.sqrt(6)], rtol=1e-7)
    assert split.parameter == [0.0]
    assert split.attack_share == [1.0]
    assert np.isnan(split.flips).all()
    assert np.isnan(split.stability).all()


@pytest.mark.parametrize(
    ("theta_2", "jump"), [(-1.5, None), (-0.5, 0.093621), (0.5, 0.339850), (1.5, 0.379887)]
)
def test_kinks_of_the_swish_toy_are_found(theta_2, jump):
    """The table of formulas G.2: the kink on theta_1 = 0 vanishes under the plateau."""
    kinks = theory.find_kinks(
        GRADIENT["swish", "linf"],
        np.array([-1.3, theta_2]),
        np.array([1.0, 0.0]),
        length=2.0,
        num_points=16,
        signature_fn=np.sign,
    )
    if jump is None:
        assert len(kinks.places) == 0
        return
    np.testing.assert_allclose(kinks.places, [1.3], atol=1e-8)
    np.testing.assert_allclose(kinks.jumps, [jump], atol=2e-6)
    np.testing.assert_allclose(kinks.vectors[0], [jump, 0.0], atol=1e-6)
    assert kinks.responsible == ((0,),)
    smooth = theory.find_kinks(
        GRADIENT["swish", "l2"],
        np.array([-1.3, theta_2]),
        np.array([1.0, 0.0]),
        length=2.0,
        num_points=16,
    )
    assert len(smooth.places) == 0


def test_two_kinks_on_a_diagonal_and_one_on_a_cell_border():
    theta = np.array([-0.75, -1.25])
    direction = np.array([3.0, 4.0])
    kinks = theory.find_kinks(
        GRADIENT["linear", "linf"], theta, direction, length=2.5, num_points=20
    )
    # theta_1 = 0 at 0.75/0.6 = 1.25 = 10 cells exactly, theta_2 = 0 at 1.25/0.8 = 1.5625.
    np.testing.assert_allclose(kinks.places, [1.25, 1.5625], atol=1e-8)
    for place, jump, axis in zip(kinks.places, kinks.jumps, (0, 1), strict=True):
        on_kink = theta + place * direction / 5
        on_kink[axis] = 0.0
        np.testing.assert_allclose(jump, theory.toy_kink_jump(on_kink), atol=1e-8)


def lp_gradient(p):
    """Gradient of phi(theta x - eps |theta|_q) with 1/p + 1/q = 1, p > 2: q < 2."""
    q = p / (p - 1)

    def gradient(theta):
        size = np.sum(np.abs(theta) ** q) ** (1 / q)
        attack = np.sign(theta) * np.abs(theta) ** (q - 1) / size ** (q - 1)
        x = POINT - EPS * attack
        return -x / (1 + np.exp(theta @ x))

    return gradient


@pytest.mark.parametrize(("p", "holder"), [(3.0, 0.5), (6.0, 0.2)])
def test_exponents_of_lp_attacks(p, holder):
    """B.8: on theta_i = 0 the attack is Hoelder of exponent 1/(p - 1)."""
    found = theory.slope_exponent(
        lp_gradient(p), np.array([0.0, 1.3]), np.array([1.0, 0.0]), spacing=1e-4
    )
    np.testing.assert_allclose(found.exponent, holder - 1, atol=0.01)


def test_exponents_of_kinks_smooth_points_and_plateaus():
    exponent = lambda model, norm, theta: (
        theory.slope_exponent(GRADIENT[model, norm], np.array(theta), np.array([1.0, 0.0])).exponent
    )
    np.testing.assert_allclose(exponent("linear", "linf", [0.0, 1.3]), -1, atol=0.02)
    np.testing.assert_allclose(exponent("linear", "l2", [0.0, 0.0]), -1, atol=0.02)
    np.testing.assert_allclose(exponent("linear", "l2", [0.0, 1.3]), 0, atol=0.02)
    assert exponent("swish", "linf", [0.0, -1.5]) == 0.0


@pytest.mark.parametrize("num_probes", [None, 400])
def test_active_set_stability_predicts_the_flips(num_probes):
    """A tanh unit a layer: exact B by finite differences, flips by recomputed gradients."""
    rng = np.random.default_rng(3)
    x, eps = rng.uniform(0.2, 0.8, size=6), 0.1
    theta = {"w": rng.normal(size=(4, 6)) * 0.5, "v": rng.normal(size=4)}
    loss = lambda x, t: jnp.tanh(t["w"] @ x) @ t["v"]
    low, high = x - eps, x + eps
    with jax.enable_x64(True):
        gradient = jax.jit(jax.grad(loss))
        attack = x
        for _ in range(20):
            attack = np.where(np.asarray(gradient(jnp.asarray(attack), theta)) > 0, high, low)
        step = {"w": rng.normal(size=(4, 6)), "v": rng.normal(size=4)}
        found = theory.active_set_stability(
            loss,
            theta,
            attack,
            low=low,
            high=high,
            step=jax.tree.map(lambda s: 1e-4 * s, step),
            key=jax.random.key(0),
            num_probes=num_probes,
        )
        jacobian = jax.jacobian(gradient, argnums=1)(jnp.asarray(attack), theta)
        rows = np.concatenate([jacobian["w"].reshape(6, -1), jacobian["v"].reshape(6, -1)], 1)
    assert found.active.all()
    tolerance = 1e-12 if num_probes is None else 0.2
    np.testing.assert_allclose(found.speed, np.linalg.norm(rows, axis=1), rtol=tolerance)
    if num_probes is not None:
        return
    np.testing.assert_allclose(found.jumps, 2 * eps * found.speed, rtol=1e-12)
    np.testing.assert_allclose(found.radius, (found.margin / found.speed).min())
    assert not found.flips.any()
    # The step along row i that brings g_i to its zero flips i to first order, and i alone here.
    weakest = int((found.margin / found.speed).argmin())
    sign = -np.sign(np.asarray(gradient(attack, theta))[weakest])
    part = lambda leaf: np.asarray(leaf[weakest]) * sign / found.speed[weakest]
    for factor, flipped in ((0.95, False), (1.05, True)):
        along = jax.tree.map(lambda b, f=factor: f * found.radius * part(b), jacobian)
        again = theory.active_set_stability(loss, theta, attack, low=low, high=high, step=along)
        assert again.flips[weakest] == flipped


def test_inactive_coordinates_do_not_limit_the_radius():
    loss = lambda x, theta: theta @ (x - x**2 / 2)
    theta, x = np.array([1.0, 1.0]), np.array([0.5, 1.0])
    found = theory.active_set_stability(loss, theta, x, low=np.zeros(2), high=np.array([0.5, 2.0]))
    assert found.active.tolist() == [True, False]  # the second is interior, with gradient 0
    assert found.margin[1] == 0.0
    np.testing.assert_allclose(found.radius, 0.5 / 0.5)
    nothing = theory.active_set_stability(loss, theta, x, low=-np.ones(2), high=3 * np.ones(2))
    assert nothing.radius == np.inf


def test_curvature_budget_of_the_linear_model():
    """Frozen part, motion and their sum against formulas B.3; (CURV); traces add up."""
    theta, x, y = np.array([0.7, -1.1, 0.4]), np.array([0.5, 1.0, -0.3]), 1.0
    loss = lambda x, t: jax.nn.softplus(-y * t @ x)
    attack = lambda t: x - y * EPS * t / jnp.linalg.norm(t)
    with jax.enable_x64(True):
        x_adv = np.asarray(attack(jnp.asarray(theta)))
        found = theory.curvature_budget(
            jax.random.key(0),
            loss,
            theta,
            x_adv,
            lambda u: jax.jvp(attack, (jnp.asarray(theta),), (u,))[1],
            num_probes=64,
        )
    margin = y * theta @ x - EPS * np.linalg.norm(theta)
    s = lambda t: 1 / (1 + np.exp(-t))
    u = theta / np.linalg.norm(theta)
    frozen = s(margin) * s(-margin) * np.outer(x_adv, x_adv)
    motion = s(-margin) * EPS / np.linalg.norm(theta) * (np.eye(3) - np.outer(u, u))
    for part, matrix in (
        (found.frozen, frozen),
        (found.motion, motion),
        (found.total, frozen + motion),
    ):
        eigenvalues = np.linalg.eigvalsh(matrix)
        np.testing.assert_allclose(part.largest, eigenvalues[-1], rtol=1e-9)
        np.testing.assert_allclose(part.smallest, eigenvalues[0], atol=1e-9)
    assert found.motion.smallest > -1e-12
    np.testing.assert_allclose(
        found.total_trace.value, found.frozen_trace.value + found.motion_trace.value, rtol=1e-12
    )
    for part, matrix in ((found.frozen_trace, frozen), (found.motion_trace, motion)):
        assert abs(part.value - np.trace(matrix)) < 4 * part.standard_error


def test_lanczos_residuals_bound_the_error():
    rng = np.random.default_rng(4)
    matrix = rng.normal(size=(60, 60))
    matrix = (matrix + matrix.T) / 2
    eigenvalues = np.linalg.eigvalsh(matrix)
    product = lambda v: {"a": matrix[:20] @ flat(v), "b": matrix[20:] @ flat(v)}
    flat = lambda v: np.concatenate([np.asarray(v["a"]), np.asarray(v["b"])])
    params = {"a": np.zeros(20), "b": np.zeros(40)}
    with jax.enable_x64(True):
        for num_steps in (5, 15, 60):
            found = theory.extreme_eigenvalues(
                jax.random.key(0), product, params, num_steps=num_steps
            )
            assert found.largest <= eigenvalues[-1] + 1e-12
            assert found.smallest >= eigenvalues[0] - 1e-12
            assert np.abs(eigenvalues - found.largest).min() <= found.largest_error + 1e-12
        np.testing.assert_allclose(
            (found.smallest, found.largest), eigenvalues[[0, -1]], rtol=1e-10
        )


ZERO, ONE = np.zeros(2), np.ones(2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: theory.monotonicity_audit(np.sign, [ZERO], weak_convexity=0.0),
            "checkpoints has 1",
        ),
        (
            lambda: theory.monotonicity_audit(np.sign, [ZERO, ZERO], weak_convexity=0.0),
            "all equal",
        ),
        (
            lambda: theory.monotonicity_audit(np.sign, [ZERO, ONE], weak_convexity=-1.0),
            "weak_convexity=-1.0",
        ),
        (
            lambda: theory.monotonicity_audit(np.sign, [ZERO, np.ones(3)], weak_convexity=0.0),
            r"checkpoints\[1\]",
        ),
        (
            lambda: theory.smoothness_along(linear_gradient, np.sign, [ONE, ONE]),
            r"checkpoints\[0\] and checkpoints\[1\] are equal",
        ),
        (
            lambda: theory.smoothness_along(
                linear_gradient, np.sign, [ZERO, ONE], bounds=(-1.0, 1.0)
            ),
            "bounds have shapes",
        ),
        (lambda: theory.find_kinks(np.sign, ZERO, ZERO, length=1.0), "direction has norm 0"),
        (lambda: theory.find_kinks(np.sign, ZERO, ONE, length=-1.0), "length=-1.0"),
        (lambda: theory.slope_exponent(np.sign, ZERO, np.ones(3)), "direction has structure"),
        (
            lambda: theory.active_set_stability(phi_loss, ONE, ONE, low=np.zeros(3), high=ONE),
            "must be the same",
        ),
        (
            lambda: theory.active_set_stability(
                phi_loss, ONE, ONE, low=ZERO, high=ONE, num_probes=3
            ),
            "num_probes without key",
        ),
        (lambda: theory.segment_weak_convexity(phi_loss, ONE, ONE, [ONE]), "are equal"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_misuse(call, message):
    with pytest.raises(ValueError, match=message):
        call()
