"""Branch and bound: the bounds hold, are attained, and fail when an ingredient is wrong."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv import losses, theory
from jaxadv.theory._attack import branch
from jaxadv.theory._attack.branch import certify
from jaxadv.theory._attack.intervals import Interval
from jaxadv.theory._attack.problem import make_problem

pytestmark = pytest.mark.slow
NORMS = {"linf": 0.3, "l2": 0.5, "l1": 0.8}
ACTIVATIONS = {"softplus": jax.nn.softplus, "swish": jax.nn.swish, "tanh": jnp.tanh}


def network(activation):
    def loss(x, theta):
        logits = ACTIVATIONS[activation](x @ theta["w"] + theta["b"]) @ theta["v"]
        return losses.cross_entropy(logits[None], jnp.array([0]))[0]

    return loss


def weights(seed, size, width=6):
    rng = np.random.default_rng(seed)
    return {
        "w": 2 * rng.normal(size=(size, width)), "b": rng.normal(size=width),
        "v": rng.normal(size=(width, 3)),
    }, rng.uniform(size=size)  # fmt: skip


def points_of(problem, count, seed=0):
    """Random points of C(x), some of them at its edges."""
    feasible = problem.feasible
    rng = np.random.default_rng(seed)
    spread = rng.uniform(0.5, 3, (count, 1)) * rng.normal(size=(count, feasible.x.shape[0]))
    return jax.vmap(feasible.project)(np.asarray(feasible.x) + float(feasible.eps) * spread)


def certified(loss, theta, x, norm, eps, bounds=(0.0, 1.0), **options):
    return theory.optimal_attack(
        jax.random.key(0), loss, theta, x, norm=norm, eps=eps, bounds=bounds,
        certificate="global", **options,
    )  # fmt: skip


def bounded(problem, size, tolerance=1e-6, max_cells=100_000):
    """Branch and bound alone, which starts at x."""
    proof, best = certify(problem, (size,), problem.feasible.x, tolerance, max_cells)
    value = problem.loss(jnp.asarray(best), problem.theta)
    assert proof.value == pytest.approx(float(value), abs=1e-12)
    np.testing.assert_allclose(problem.feasible.project(jnp.asarray(best)), best, atol=1e-12)
    return proof


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("size", "activation"), [(2, "swish"), (3, "softplus")])
def test_the_bounds_enclose_the_maximum_of_a_dense_grid(norm, size, activation, x64):
    loss = network(activation)
    axes = [np.linspace(-NORMS[norm], NORMS[norm], 401 if size == 2 else 61)] * size
    for seed in range(3):
        theta, x = weights(seed, size)
        problem = make_problem(loss, theta, x, norm=norm, eps=NORMS[norm], bounds=(0.0, 1.0))
        proof = bounded(problem, size)
        assert proof.proved and not proof.stopped and 0 <= proof.gap <= 1e-6
        grid = np.stack(np.meshgrid(*axes), -1).reshape(-1, size) + x
        inside = jax.vmap(problem.feasible.project)(jnp.asarray(grid))
        values = jax.jit(jax.vmap(loss, (0, None)))(inside, theta)
        assert float(values.max()) <= proof.upper
        assert float(values.max()) >= proof.value - 0.02 * float(jnp.ptp(values))


@pytest.mark.parametrize("norm", NORMS)
def test_no_point_is_above_the_upper_bound(norm, x64):
    loss = network("softplus")
    for seed in range(4):
        theta, x = weights(seed, 3)
        problem = make_problem(loss, theta, x, norm=norm, eps=NORMS[norm], bounds=(0.0, 1.0))
        values = jax.jit(jax.vmap(loss, (0, None)))(points_of(problem, 100_000), theta)
        for cells in (1, 20, 300):
            assert float(values.max()) <= bounded(problem, 3, max_cells=cells).upper


def quadratic(x, theta):
    return x @ theta["q"] @ x / 2 + theta["c"] @ x


def test_quadratics_over_the_ball_have_the_known_maximum(x64):
    rng = np.random.default_rng(0)
    q = rng.normal(size=(4, 4))
    theta, x = dict(q=q + q.T, c=rng.normal(size=4)), np.zeros(4)
    problem = make_problem(quadratic, theta, x, norm="l2", eps=0.7, bounds=None)
    proof = bounded(problem, 4, 1e-5)
    # The trust region problem: (mu I - Q) z = c with the multiplier that makes |z| the radius.
    values, vectors = np.linalg.eigh(theta["q"])
    low, high = values[-1] + 1e-12, values[-1] + 1e3
    parts = vectors.T @ theta["c"]
    for _ in range(200):
        mu = 0.5 * (low + high)
        longer = np.linalg.norm(parts / (mu - values)) > 0.7
        low, high = (mu, high) if longer else (low, mu)
    z = vectors @ (parts / (mu - values))
    assert proof.proved
    assert proof.value - 1e-12 <= float(quadratic(z, theta)) <= proof.upper


@pytest.mark.parametrize("norm", NORMS)
def test_linear_losses_have_the_dual_norm_as_bound(norm, x64):
    c, x = np.array([3.0, -1.0, 2.0]), np.full(3, 0.5)
    problem = make_problem(lambda x, c: c @ x, c, x, norm=norm, eps=0.4, bounds=(0.0, 1.0))
    proof = bounded(problem, 3)
    size = {"linf": 6.0, "l2": np.linalg.norm(c), "l1": 3.0}[norm]
    most = float(c @ x + 0.4 * size)
    assert proof.value <= most + 1e-12 and most <= proof.upper and proof.proved


def hills(x, height):
    """A wide hill of height 1 at 0.3, and a narrow one, of the given height, at 0.8."""
    hill = lambda place, width: jnp.exp(-jnp.sum((x - place) ** 2) / width)
    return hill(0.3, 0.1) + height * hill(0.8, 0.003)


def test_the_certificate_exposes_a_search_that_missed_the_maximum(x64):
    x, height = np.full(2, 0.4), jnp.asarray(1.5)
    local = theory.optimal_attack(
        jax.random.key(0), hills, height, x, norm="linf", eps=0.5, num_restarts=0
    )
    assert local.optimality == "local" and local.certificate is None
    assert float(local.value) < 1.01  # the wide hill
    problem = make_problem(hills, height, x, norm="linf", eps=0.5, bounds=None)
    one_look, _ = certify(problem, (2,), local.x_adv, 1e-6, 1)
    assert one_look.gap > 0.4 and one_look.stopped and not one_look.proved
    attack = certified(hills, height, x, "linf", 0.5, bounds=None, num_restarts=0)
    assert attack.optimality == "global" and attack.certificate.gain > 0.4
    np.testing.assert_allclose(attack.x_adv, 0.8, atol=1e-3)
    assert attack.certificate.value == pytest.approx(float(attack.value), abs=1e-12)


def bowl(x, theta):
    return 3 * jnp.sum((x - 0.4) ** 2) + theta["v"][0, 0]


def looks(loss, norm):
    """How far the losses of points in 200 random boxes exceed their bounds; <= 0 if they hold."""
    theta, x = weights(1, 3)
    problem = make_problem(loss, theta, x, norm=norm, eps=NORMS[norm], bounds=(0.0, 1.0))
    feasible = problem.feasible
    rng = np.random.default_rng(0)
    middle = x + 0.5 * (np.asarray(points_of(problem, 200, 1)) - x)
    reach = float(feasible.eps) * rng.uniform(0.02, 0.5, (200, 3))
    lo = np.maximum(middle - reach, np.maximum(feasible.low, x - NORMS[norm]))
    hi = np.minimum(middle + reach, np.minimum(feasible.high, x + NORMS[norm]))
    flat = lambda z: loss(z, theta)
    jaxpr = jax.make_jaxpr(flat)(feasible.x)

    def bound(lo, hi):
        lo, hi, _ = branch._cropped(feasible, lo, hi)
        center, radius = 0.5 * (lo + hi), 0.5 * (hi - lo) * (1 + 1e-15)
        over = branch.enclose(jaxpr, Interval(lo, hi))
        at = branch.enclose(jaxpr, Interval(center, center + 0.0), order=1)
        return branch._bound(feasible, center, radius, at, over, branch._matrix(over.bend))

    bounds = jax.jit(jax.vmap(bound))(jnp.asarray(lo), jnp.asarray(hi))
    places = np.concatenate([rng.uniform(size=(500, 200, 3)), rng.integers(2, size=(50, 200, 3))])
    inner = lo + places * (hi - lo)
    length = np.linalg.norm(inner - x, ord={"linf": np.inf, "l2": 2, "l1": 1}[norm], axis=2)
    values = np.asarray(jax.jit(jax.vmap(jax.vmap(flat)))(jnp.asarray(inner)))
    return (np.where(length <= NORMS[norm], values, -np.inf).max(0) - np.asarray(bounds)).max()


@pytest.mark.parametrize("norm", NORMS)
def test_a_box_has_no_point_above_its_bound(norm, x64):
    assert looks(network("softplus"), norm) <= 0
    assert looks(bowl, norm) <= 0


@pytest.mark.parametrize("norm", NORMS)
def test_half_the_hessian_does_not_bound(norm, x64, monkeypatch):
    real = branch.enclose

    def halved(jaxpr, box, order=2):
        found = real(jaxpr, box, order)
        bend = found.bend and Interval(0.5 * found.bend.lo, 0.5 * found.bend.hi)
        return found._replace(bend=bend)

    monkeypatch.setattr(branch, "enclose", halved)
    assert looks(bowl, norm) > 1e-3


@pytest.mark.parametrize("norm", NORMS)
def test_conditions_of_a_maximizer_drop_no_maximizer(norm, x64):
    """The box around the best of many points is never dropped, and keeps a point as good."""
    theta, x = weights(2, 3)
    loss = network("softplus")
    problem = make_problem(loss, theta, x, norm=norm, eps=NORMS[norm], bounds=(0.0, 1.0))
    _, best = certify(problem, (3,), problem.feasible.x, 1e-9, 100_000)
    value = float(loss(best, theta))
    rng = np.random.default_rng(0)
    lower = best - NORMS[norm] * rng.uniform(0.02, 0.5, (256, 3))
    upper = best + NORMS[norm] * rng.uniform(0.02, 0.5, (256, 3))
    low = np.maximum(problem.feasible.low, x - NORMS[norm])
    high = np.minimum(problem.feasible.high, x + NORMS[norm])
    # Ends on the box's own faces, where the conditions may block a direction.
    lower, upper = np.maximum(lower, low), np.minimum(upper, high)
    found = branch._look(problem, jnp.asarray(lower), jnp.asarray(upper), shape=(3,))
    assert (np.asarray(found.upper) >= value - 1e-9).all()
    assert (np.asarray(found.lo) <= best + 1e-4).all()
    assert (np.asarray(found.hi) >= best - 1e-4).all()


def test_five_dimensions_of_an_l1_ball_with_the_box(x64):
    theta, x = weights(0, 5, 8)
    attack = certified(network("softplus"), theta, x, "l1", 1.0)
    assert attack.optimality == "global" and attack.certificate.cells < 20_000


def stopped(x, theta):
    return jnp.sum(theta * x) * jax.lax.stop_gradient(jnp.sum(x))


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda x, theta: jnp.sum(jax.nn.relu(x @ theta)), "not smooth"),
        (lambda x, theta: jnp.sum(jnp.cumsum(x @ theta)), "does not know the operation 'cumsum'"),
        (lambda x, theta: jnp.max(x @ theta) + x[0], "maximum, which is not smooth"),
        (stopped, "stop_gradient"),
    ],
)
def test_losses_that_cannot_be_certified_are_named(loss, message, x64):
    with pytest.raises(ValueError, match=message):
        certified(loss, np.eye(3) if loss is not stopped else np.ones(3), np.ones(3), "linf", 0.1,
                  bounds=None)  # fmt: skip


def test_certificates_cannot_be_traced(x64):
    run = functools.partial(
        theory.optimal_attack, jax.random.key(0), lambda x, c: c @ x, norm="l2", eps=1.0
    )
    with pytest.raises(ValueError, match=r"cannot run inside jax\.jit"):
        jax.jit(lambda x: run(np.ones(2), x, certificate="global"))(jnp.zeros(2))
    with pytest.raises(ValueError, match="certificate='sure' must be"):
        run(np.ones(2), np.zeros(2), certificate="sure")
