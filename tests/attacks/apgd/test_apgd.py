"""APGD: the checkpoints, trajectories against the reference, and properties."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv import balls
from jaxadv.attacks import apgd, apgd_targeted
from jaxadv.attacks._apgd.state import checkpoints
from tests.helpers import autoattack_cases as cases
from tests.helpers.arrays import load_arrays


def run_case(case, dtype=np.float64, **options):
    model = cases.net(case.seed, dtype=dtype)
    x = jnp.asarray(cases.images(100 + case.seed, dtype=dtype))
    y = jnp.asarray(cases.predictions(model, x))
    drawn = jnp.asarray(cases.noise(200 + case.seed, x.shape, case.norm, dtype))[None]
    targeted = "targeted" in case.loss
    attack = apgd_targeted if targeted else apgd
    if targeted:
        options["num_targets"] = 1
    return x, attack(
        jax.random.key(0),
        cases.jax_logits(model),
        x,
        y,
        norm=case.norm,
        eps=cases.EPS[case.norm],
        loss=case.loss,
        num_steps=case.num_steps,
        noise=drawn,
        trace=True,
        l1_exact_zeros=False,
        **options,
    )


def dead_gradients(found, case):
    """Evaluations from which on an image has met the label at rank 3 of the logits.

    The DLR loss is 1 there and its gradient 0 up to rounding, which L2 divides by itself + 1e-12:
    the next point is rounding noise of the order 1e-7 in every implementation.
    """
    ones = np.abs(np.asarray(found.trace.losses) - 1) < 1e-9
    return np.logical_or.accumulate(ones, axis=0) & (case.norm == "l2" and case.loss == "dlr")


@pytest.mark.parametrize("case", cases.APGD_CASES, ids=lambda case: case.name)
def test_trajectory_is_the_reference_in_float64(case, x64, golden):
    _, found = run_case(case)
    expected = load_arrays(golden / "autoattack_apgd.npz")
    points = np.stack([cases.fingerprint(p) for p in np.asarray(found.trace.points)])
    dead = dead_gradients(found, case)
    kept = ~dead[-1]
    assert kept.sum() >= 5
    wrong = (np.abs(points - expected[f"{case.name}/points"]) > 1e-9) & ~dead
    assert not wrong.any(), f"first difference at evaluation {wrong.any(axis=1).argmax()}"
    np.testing.assert_allclose(
        np.asarray(found.best_losses)[kept],
        expected[f"{case.name}/best_losses"][kept],
        rtol=0,
        atol=1e-9,
    )
    np.testing.assert_array_equal(found.robust, expected[f"{case.name}/robust"])
    for name, points, rows in [
        ("best", found.best_images, kept),
        ("adversarial", found.images, kept & ~np.asarray(found.robust)),
    ]:
        np.testing.assert_allclose(
            cases.fingerprint(np.asarray(points))[rows],
            expected[f"{case.name}/{name}"][rows],
            atol=1e-9,
        )


def test_the_cases_tell_the_quirks_of_the_reference_from_the_paper(x64, golden):
    expected = load_arrays(golden / "autoattack_apgd.npz")
    for name in ("l2_dlr-targeted_10", "l2_ce_37"):
        (case,) = [case for case in cases.APGD_CASES if case.name == name]
        _, found = run_case(case, rule="paper")
        points = np.stack([cases.fingerprint(p) for p in np.asarray(found.trace.points)])
        assert np.abs(points - expected[f"{name}/points"]).max() > 1e-3


@pytest.mark.parametrize("case", cases.APGD_CASES[:6], ids=lambda case: case.name)
def test_float32_ends_where_float64_does(case, golden):
    _, found = run_case(case, np.float32)
    expected = load_arrays(golden / "autoattack_apgd.npz")
    assert (np.asarray(found.robust) != expected[f"{case.name}/robust"]).sum() <= 1
    if case.loss != "dlr-targeted":
        kept = ~dead_gradients(found, case)[-1]
        np.testing.assert_allclose(
            np.asarray(found.best_losses)[kept],
            expected[f"{case.name}/best_losses"][kept],
            rtol=5e-3,
            atol=5e-3,
        )


@pytest.mark.parametrize(
    ("num_steps", "repo", "paper"),
    [
        (100, [22, 41, 57, 70, 80, 87, 93, 99], [22, 41, 57, 70, 80, 87, 93, 99]),
        (1000, [220, 410, 570, 700, 800, 870, 930, 990], [220, 410, 570, 700, 800, 870, 930, 990]),
        (50, [11, 21, 30, 38, 45], [11, 21, 29, 35, 40, 44, 47, 50]),
        (20, [4, 7, 9, *range(10, 21)], [5, 9, 12, 14, 16, 18, 19, 20]),
        (10, list(range(2, 11)), [3, 5, 6, 7, 8, 9, 10]),
    ],
)
def test_checkpoints(num_steps, repo, paper):
    assert checkpoints(num_steps) == repo
    assert checkpoints(num_steps, rule="paper") == paper


def test_l1_checkpoints_are_equidistant():
    assert checkpoints(100, "l1") == list(range(4, 101, 4))
    assert checkpoints(30, "l1") == list(range(1, 31))


MODEL = cases.net(3, (6, 6, 3), classes=5, features=4, dtype=np.float32)
LOGITS = cases.jax_logits(MODEL)
X = jnp.asarray(cases.images(4, 12, (6, 6, 3), np.float32))
Y = jnp.asarray(cases.predictions(MODEL, X)).at[3].set(0).at[4].set(1)
RADII = {"linf": 0.01, "l2": 0.06, "l1": 0.4}


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("attack", [apgd, pytest.param(apgd_targeted, marks=pytest.mark.slow)])
def test_result_is_inside_the_ball_and_misclassified(attack, norm):
    options = dict(norm=norm, eps=RADII[norm], num_steps=20)
    found = attack(jax.random.key(0), LOGITS, X, Y, **options)
    deltas = np.abs(np.asarray(found.images - X, np.float64)).reshape(12, -1)
    sizes = {"linf": deltas.max(1), "l2": np.sqrt((deltas**2).sum(1)), "l1": deltas.sum(1)}[norm]
    assert (sizes <= RADII[norm] * (1 + 1e-5)).all()
    assert (found.images.min() >= 0) and (found.images.max() <= 1)
    np.testing.assert_array_equal(LOGITS(found.images).argmax(1) != Y, found.success)
    assert 0 < found.success.sum() < 12
    clean_wrong = np.asarray(LOGITS(X).argmax(1) != Y)
    assert clean_wrong.any()
    np.testing.assert_array_equal(found.images[clean_wrong], X[clean_wrong])

    early = attack(jax.random.key(0), LOGITS, X, Y, **options, early_stop=True)
    np.testing.assert_array_equal(early.success, found.success)
    assert early.forward.sum() < found.forward.sum()
    rows = jnp.array([7, 2, 9])
    part = attack(jax.random.key(0), LOGITS, X[rows], Y[rows], **options, indices=rows)
    np.testing.assert_allclose(part.images, found.images[rows], atol=1e-5)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_steps_do_not_see_the_size_of_the_gradient(norm):
    eps = {"linf": 0.1, "l2": 0.3, "l1": 2.0}[norm]
    x, y = jnp.full((1, 3, 3, 3), 0.5), jnp.zeros(1, jnp.int32)
    sizes = 10.0 ** jnp.array([0, -4, -12, -20, -30])
    weights = jax.random.normal(jax.random.key(3), (27,))
    # Between two classes the gradient of the cross-entropy has one direction everywhere.
    gain = (
        jnp.abs(weights).max()
        if norm == "l1"
        else balls.norm_of(weights[None], {"linf": "l1", "l2": "l2"}[norm])[0]
    )
    needed = {"linf": 0.95, "l2": 0.95, "l1": 0.2}[norm] * eps * gain

    def logits_fn(images, size):
        moved = (images - 0.5).reshape(-1, 27) @ weights - needed
        return size * jnp.stack([jnp.zeros_like(moved), moved], axis=1)

    attack = lambda logits_fn: apgd(
        jax.random.key(0), logits_fn, x, y, norm=norm, eps=eps, num_steps=3, start=x
    ).success[0]
    assert [bool(attack(lambda x, size=size: logits_fn(x, size))) for size in sizes] == [True] * 5


def test_evaluations_of_an_unbroken_image_are_those_of_the_reference():
    constant = lambda x: jnp.eye(10)[jnp.zeros(x.shape[0], int)] + 0 * x.sum((1, 2, 3))[:, None]
    x, y = X[:1], jnp.zeros(1, jnp.int32)
    key = jax.random.key(0)
    found = apgd(key, constant, x, y, norm="linf", eps=0.1)
    assert (int(found.forward[0]), int(found.backward[0])) == (102, 101)
    found = apgd_targeted(key, constant, x, y, norm="l2", eps=0.1)
    assert (int(found.forward[0]), int(found.backward[0])) == (919, 909)
    found = apgd(key, constant, x, y, norm="l1", eps=1.0, num_restarts=5, three_radii=True)
    assert (int(found.forward[0]), int(found.backward[0])) == (516, 515)
    found = apgd_targeted(key, constant, x, y, norm="l1", eps=1.0, num_targets=5, three_radii=True)
    assert (int(found.forward[0]), int(found.backward[0])) == (521, 515)
    assert int(found.zero_gradients[0]) == 515


def test_best_loss_mode_keeps_the_largest_loss_of_all_restarts():
    key, options = jax.random.key(1), dict(norm="linf", eps=0.02, num_steps=10, best_loss=True)
    one = apgd(key, LOGITS, X, Y, **options)
    more = apgd(key, LOGITS, X, Y, **options, num_restarts=4)
    assert (more.best_losses >= one.best_losses).all() and (
        more.best_losses > one.best_losses
    ).any()
    np.testing.assert_array_equal(more.images, more.best_images)


def test_expectation_over_transformation():
    noisy = lambda x, key: LOGITS(x) + 0.2 * jax.random.normal(key, (x.shape[0], 5))
    options = dict(norm="linf", eps=0.05, num_steps=5, eot=4, randomized=True)
    found = apgd(jax.random.key(1), noisy, X, Y, **options)
    rows = jnp.array([5, 0])
    part = apgd(jax.random.key(1), noisy, X[rows], Y[rows], **options, indices=rows)
    np.testing.assert_allclose(part.images, found.images[rows], atol=1e-5)
    used = np.asarray(found.forward)[np.asarray(LOGITS(X).argmax(1) == Y)]
    assert 1 + 6 * 4 in used


def test_weights_as_arguments_are_not_compiled_again():
    apply = lambda weights, x: x.reshape(x.shape[0], -1) @ weights
    first = jax.random.normal(jax.random.key(0), (108, 4))
    results = []
    for weights in (first, -first):
        model = jax.tree_util.Partial(apply, weights)
        y = model(X).argmax(1).astype(jnp.int32)
        results.append(apgd(jax.random.key(0), model, X, y, norm="linf", eps=0.05, num_steps=3))
        plain = apgd(
            jax.random.key(0),
            lambda x, w=weights: apply(w, x),
            X,
            y,
            norm="linf",
            eps=0.05,
            num_steps=3,
        )
        np.testing.assert_allclose(results[-1].images, plain.images, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(norm="linfty"), "did you mean 'linf'"),
        (dict(loss="dlr-targeted"), "loss='dlr-targeted'"),
        (dict(num_steps=0), "num_steps=0"),
        (dict(eot=0), "eot=0"),
        (dict(rule="original"), "rule='original'"),
        (dict(three_radii=True), "three_radii=True"),
        (dict(noise=jnp.zeros((2, 2))), "noise has shape"),
        (dict(start=jnp.zeros((2, 2))), "start has shape"),
        (dict(trace=True, num_restarts=2), "trace=True"),
        (dict(eps=8.0), "units"),
    ],
)
def test_misuse(change, message):
    options = dict(norm="linf", eps=0.1) | change
    with pytest.raises(ValueError, match=message):
        apgd(jax.random.key(0), LOGITS, X, Y, **options)


def test_too_few_classes_for_the_loss():
    two = lambda x: LOGITS(x)[:, :2]
    y = jnp.zeros(12, jnp.int32)
    with pytest.raises(ValueError, match="needs at least 3 classes and the model has 2"):
        apgd(jax.random.key(0), two, X, y, norm="linf", eps=0.1, loss="dlr")
    with pytest.raises(ValueError, match="needs at least 4 classes"):
        apgd_targeted(jax.random.key(0), lambda x: LOGITS(x)[:, :3], X, y, norm="linf", eps=0.1)
