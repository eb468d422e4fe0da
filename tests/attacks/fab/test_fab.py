"""FAB: its projections, runs in float64 against the reference, and properties."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv import losses
from jaxadv.attacks import Batch, fab, fab_targeted
from jaxadv.attacks._fab.kernel import FAB
from jaxadv.attacks._fab.projections import project_to_hyperplane
from tests.helpers import autoattack_cases as cases
from tests.helpers.arrays import load_arrays


def norms(deltas, norm):
    flat = np.abs(np.asarray(deltas, np.float64)).reshape(len(deltas), -1)
    return {"linf": flat.max(1), "l2": np.sqrt((flat**2).sum(1)), "l1": flat.sum(1)}[norm]


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_projection_is_that_of_the_reference(norm, golden):
    points, normals, offsets = cases.hyperplanes(0)
    gaps = (points.astype(float) * normals).sum(1) - offsets
    found = project_to_hyperplane(*map(jnp.asarray, (points, normals, gaps.astype("f4"))), norm)
    expected = load_arrays(golden / "autoattack_fab.npz")[f"projection_{norm}"]
    np.testing.assert_allclose(norms(found, norm), norms(expected, norm), atol=2e-5, rtol=1e-5)
    moved = points + np.asarray(found, np.float64)
    assert moved.min() >= -1e-6 and moved.max() <= 1 + 1e-6
    weights = np.abs(normals)
    reach = (weights * np.where(normals * np.sign(gaps)[:, None] > 0, points, 1 - points)).sum(1)
    feasible = reach > np.abs(gaps) * (1 + 1e-4)
    assert 5 < feasible.sum() < len(points) - 5
    left = (moved * normals).sum(1) - offsets
    assert (np.abs(left) <= 1e-4 * weights.sum(1) + 1e-6)[feasible].all()


@pytest.mark.parametrize("case", cases.FAB_CASES, ids=lambda case: case.name)
def test_run_is_the_reference_in_float64(case, x64, golden):
    model = cases.net(case.seed)
    x = jnp.asarray(cases.images(100 + case.seed))
    y = jnp.asarray(cases.predictions(model, x))
    options = dict(norm=case.norm, eps=cases.EPS[case.norm], num_steps=case.num_steps)
    if case.random_start:  # the reference starts at random in every run but the first
        drawn = jnp.asarray(cases.noise(200 + case.seed, x.shape, case.norm))
        options |= dict(noise=jnp.stack([drawn, drawn]), num_restarts=2)
    attack = fab
    if case.targeted:
        attack, options["num_targets"] = fab_targeted, 1
    model_fn = cases.jax_logits(model)
    if case.random_start:
        found = second_run(attack, model_fn, x, y, options)
    else:
        found = attack(jax.random.key(0), model_fn, x, y, **options).best_images
    expected = load_arrays(golden / "autoattack_fab.npz")[case.name]
    np.testing.assert_allclose(cases.fingerprint(np.asarray(found)), expected, atol=1e-9)
    assert (norms(found - x, case.norm) > 0).all()


def second_run(attack, model_fn, x, y, options):
    """The nearest images of the run with the random start alone, without its public wrapper."""
    kernel = FAB(
        num_steps=options["num_steps"],
        num_restarts=2,
        num_targets=int(attack is fab_targeted),
        early_stop=False,
    )
    rows, run = jnp.arange(len(x)), jnp.int32(1)
    batch = Batch(
        x, y, jnp.ones(len(x), bool), options["norm"], jnp.asarray(options["eps"]),
        jax.random.key(0), rows, run, lambda points, number: model_fn(points), options["noise"],
    )  # fmt: skip
    return kernel.advance(batch, kernel.begin(batch), 0, kernel.num_steps).adversarial


MODEL = cases.net(3, (6, 6, 3), classes=5, features=4, dtype=np.float32)
LOGITS = cases.jax_logits(MODEL)
X = jnp.asarray(cases.images(4, 12, (6, 6, 3), np.float32))
Y = jnp.asarray(cases.predictions(MODEL, X)).at[3].set(0).at[4].set(1)
RADII = {"linf": 0.01, "l2": 0.06, "l1": 0.5}


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_result_is_the_nearest_misclassified_image(norm):
    options = dict(norm=norm, eps=RADII[norm], num_steps=20)
    found = fab_targeted(jax.random.key(0), LOGITS, X, Y, **options, num_restarts=2)
    # FAB stops just beyond the boundary, so another order of sums may move an image back onto it.
    beyond = lambda images: np.asarray(losses.margin(LOGITS(images), Y)) > -1e-5
    np.testing.assert_array_equal(beyond(found.images), found.success)
    wrong = np.asarray(LOGITS(X).argmax(1) != Y)
    assert wrong.any() and (np.asarray(found.norms)[wrong] == 0).all()
    assert 0 < found.success.sum() < 12
    sizes = norms(found.best_images - X, norm)
    np.testing.assert_allclose(sizes, found.norms, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(found.success, np.asarray(found.norms) <= RADII[norm])
    assert beyond(found.best_images).all()
    rows = jnp.array([7, 2, 9])
    early = fab_targeted(
        jax.random.key(0),
        LOGITS,
        X[rows],
        Y[rows],
        **options,
        num_restarts=2,
        early_stop=True,
        indices=rows,
    )
    np.testing.assert_array_equal(early.success, found.success[rows])
    assert early.forward.sum() < found.forward[rows].sum()


@pytest.mark.parametrize("size", [1.0, 1e-6, 1e-12, 1e-20, 1e-30])
def test_the_nearest_boundary_of_a_linear_model_is_found_exactly(size):
    weights = jax.random.normal(jax.random.key(0), (48, 4)) * 0.1 * size
    linear = lambda x: x.reshape(x.shape[0], -1) @ weights
    x = jnp.full((1, 4, 4, 3), 0.5)
    y = linear(x).argmax(1).astype(jnp.int32)
    found = fab(jax.random.key(0), linear, x, y, norm="l2", eps=0.1, num_steps=40)
    logits = np.asarray(linear(x))[0]
    others = [k for k in range(4) if k != int(y[0])]
    gaps = [
        (logits[y[0]] - logits[k])
        / np.linalg.norm(np.float64(weights[:, k] - weights[:, int(y[0])]))
        for k in others
    ]
    np.testing.assert_allclose(found.norms[0], min(gaps), rtol=1e-2)


def test_evaluations_of_an_unbroken_image_are_those_of_the_reference():
    constant = lambda x: jnp.eye(10)[jnp.zeros(x.shape[0], int)] + 0 * x.sum((1, 2, 3))[:, None]
    x, y = X[:1], jnp.zeros(1, jnp.int32)
    found = fab_targeted(jax.random.key(0), constant, x, y, norm="linf", eps=0.1)
    assert (int(found.forward[0]), int(found.backward[0])) == (1828, 900)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(num_steps=0), "num_steps=0"),
        (dict(num_restarts=0), "num_restarts=0"),
        (dict(norm="L2"), "did you mean 'l2'"),
        (dict(noise=jnp.zeros((2, 2))), "noise has shape"),
    ],
)
def test_misuse(change, message):
    options = dict(norm="linf", eps=0.1) | change
    with pytest.raises(ValueError, match=message):
        fab(jax.random.key(0), LOGITS, X, Y, **options)
