"""The Square Attack: schedule and patterns, injected draws against the reference, properties."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv.attacks import square
from jaxadv.attacks._square import windows
from jaxadv.attacks._square.kernel import SquareDraws
from tests.helpers import autoattack_cases as cases
from tests.helpers.arrays import load_arrays


@pytest.mark.parametrize("case", cases.SQUARE_CASES, ids=lambda case: case.norm)
def test_accepts_the_queries_that_the_reference_accepts(case, golden):
    model = cases.net(case.seed, dtype=np.float32)
    x = jnp.asarray(cases.images(100 + case.seed, dtype=np.float32))
    y = jnp.asarray(cases.predictions(model, x))
    positions, signs, flips, initial_signs, initial_flips = cases.square_draws(case, len(x))
    every = lambda values: jnp.repeat(jnp.asarray(values, jnp.float32)[:, None], len(x), axis=1)
    if initial_flips is not None:
        initial_flips = jnp.asarray(np.broadcast_to(initial_flips, (len(x), *initial_flips.shape)))
    draws = SquareDraws(
        jnp.asarray(initial_signs, jnp.float32),
        initial_flips,
        windows.Draws(every(positions), every(signs), every(flips) > 0.5),
    )
    found = square(
        jax.random.key(0),
        cases.jax_logits(model),
        x,
        y,
        norm=case.norm,
        eps=case.eps,
        num_queries=case.num_queries,
        draws=draws,
    )
    expected = load_arrays(golden / "autoattack_square.npz")
    name = f"{case.norm}_{case.num_queries}"
    np.testing.assert_array_equal(found.queries, expected[f"{name}/queries"])
    assert 0 < found.success.sum() < len(x)
    np.testing.assert_allclose(
        cases.fingerprint(np.asarray(found.best_images)),
        expected[f"{name}/points"],
        atol=1e-5 if case.norm == "linf" else 2e-4,
    )


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_patterns_are_those_of_the_reference(norm, golden):
    expected = load_arrays(golden / "autoattack_square.npz")
    for side in (3, 5, 6, 7, 11, 15, 21, 29):
        np.testing.assert_allclose(
            windows.pattern(side, norm), expected[f"pattern_{norm}_{side}"], atol=1e-6
        )


@pytest.mark.parametrize(
    ("size", "norm", "sides"),
    [
        ((32, 32), "linf", [29, 20, 14, 10, 7, 5, 4, 3, 2, 1]),
        ((32, 32), "l2", [29, 21, 15, 11, 7, 5, 5, 3, 3, 3]),
        ((28, 28), "linf", [25, 18, 13, 9, 6, 4, 3, 2, 2, 1]),
        ((224, 224), "linf", [200, 142, 100, 71, 50, 35, 25, 18, 13, 9]),
    ],
)
def test_side_lengths(size, norm, sides):
    starts = [0, 11, 51, 201, 501, 1001, 2001, 4001, 6001, 8001]
    found = windows.side_lengths(10000, size, norm)
    assert found[starts].tolist() == sides
    assert found[[level - 1 for level in starts[1:]]].tolist() == sides[:-1]
    np.testing.assert_array_equal(windows.side_lengths(1000, size, norm, rescale=True), found[::10])


MODEL = cases.net(3, (7, 12, 1), classes=4, features=4, dtype=np.float32)
LOGITS = cases.jax_logits(MODEL)
X = jnp.asarray(cases.images(4, 12, (7, 12, 1), np.float32))
Y = jnp.asarray(cases.predictions(MODEL, X)).at[3].set(0).at[4].set(1)
RADII = {"linf": 0.02, "l2": 0.15, "l1": 1.0}


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_result_on_images_that_are_not_square(norm):
    options = dict(norm=norm, eps=RADII[norm], num_queries=300)
    found = square(jax.random.key(0), LOGITS, X, Y, **options)
    deltas = np.abs(np.asarray(found.best_images - X, np.float64)).reshape(12, -1)
    sizes = {"linf": deltas.max(1), "l2": np.sqrt((deltas**2).sum(1)), "l1": deltas.sum(1)}[norm]
    assert (sizes <= RADII[norm] * (1 + 1e-5)).all()
    assert (found.best_images.min() >= 0) and (found.best_images.max() <= 1)
    np.testing.assert_array_equal(LOGITS(found.images).argmax(1) != Y, found.success)
    clean_wrong = np.asarray(LOGITS(X).argmax(1) != Y)
    assert clean_wrong.sum() < found.success.sum() < 12
    unbroken = ~np.asarray(found.success)
    assert (np.asarray(found.forward)[unbroken] == 300 + 3).all()
    if norm == "linf":
        rows = jnp.array([7, 2, 9])
        part = square(jax.random.key(0), LOGITS, X[rows], Y[rows], **options, indices=rows)
        np.testing.assert_array_equal(part.images, found.images[rows])


def test_shared_squares_are_the_same_for_all_images():
    x = jnp.repeat(X[:1], 3, axis=0)
    y = jnp.repeat(Y[:1], 3)
    options = dict(norm="linf", eps=0.02, num_queries=20)
    alike = square(jax.random.key(2), LOGITS, x, y, **options, shared=True).best_images
    np.testing.assert_array_equal(alike[0], alike[1])
    own = square(jax.random.key(2), LOGITS, x, y, **options).best_images
    assert (own[0] != own[1]).any()


def test_the_last_row_is_reached_only_on_request():
    keys = jax.random.split(jax.random.key(0), 4)
    draws = windows.draw(keys, 200, (7, 12, 1), "linf", jnp.float32)
    sides = windows.side_lengths(5000, (7, 12), "linf")
    for full, reach in ((False, 6), (True, 7)):
        room = 7 - sides[-1] + int(full)
        rows = np.floor(np.asarray(draws.positions)[..., 0] * room)
        assert int(rows.max()) + sides[-1] == reach


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(loss="dlr"), "loss='dlr'"),
        (dict(num_queries=0), "num_queries=0"),
        (dict(p_init=0.0), "p_init=0.0"),
        (dict(norm="L2"), "did you mean 'l2'"),
    ],
)
def test_misuse(change, message):
    options = dict(norm="linf", eps=0.1) | change
    with pytest.raises(ValueError, match=message):
        square(jax.random.key(0), LOGITS, X, Y, **options)
