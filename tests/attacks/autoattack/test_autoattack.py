"""AutoAttack: verdicts, their invariances, costs, checks, results."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv.attacks import _driver, autoattack
from jaxadv.attacks._autoattack.chunks import Chunks
from jaxadv.attacks._autoattack.plan import make_plan
from jaxadv.attacks._autoattack.result import AutoAttackResult, Evaluations
from tests.helpers import autoattack_cases as cases

SIZE = (6, 9, 1)  # one channel, not square
MODEL = cases.net(3, SIZE, classes=5, features=4, dtype=np.float32)
LOGITS = cases.jax_logits(MODEL)
X = cases.images(4, 40, SIZE, np.float32)
Y = cases.predictions(MODEL, X)
Y[3] = (Y[3] + 1) % 5
SHORT = dict(eps=0.012, num_steps=12, num_queries=60, progress=False)
KEY = jax.random.key(7)


@pytest.fixture(scope="module")
def result():
    return autoattack(KEY, LOGITS, X, Y, **SHORT)


def same(one, two, rows=slice(None)):
    """Bit for bit the same outcome."""
    np.testing.assert_array_equal(one.robust, two.robust[rows])
    np.testing.assert_array_equal(one.broken_by, two.broken_by[rows])
    np.testing.assert_array_equal(one.images, two.images[rows])
    np.testing.assert_array_equal(one.broken_step, two.broken_step[rows])


def test_result_is_consistent(result):
    assert list(result.accuracy) == ["clean", "apgd-ce", "apgd-t", "fab-t", "square"]
    accuracies = list(result.accuracy.values())
    assert accuracies == sorted(accuracies, reverse=True)
    assert accuracies[0] == 39 / 40 and 0.2 < accuracies[-1] < 0.9
    assert result.robust_accuracy == result.robust.mean() == accuracies[-1]
    assert result.broken_by[3] == "clean" and not result.robust[3]
    assert ((result.broken_by == "") == result.robust).all()
    predictions = np.asarray(LOGITS(jnp.asarray(result.images)).argmax(1))
    np.testing.assert_array_equal(predictions, result.predictions)
    np.testing.assert_array_equal(predictions == Y, result.robust)
    np.testing.assert_array_equal(result.margins < 0, result.robust)
    np.testing.assert_array_equal(result.images[result.robust], X[result.robust])
    sizes = np.abs(result.images.astype(float) - X).reshape(40, -1).max(1)
    np.testing.assert_allclose(result.norms, sizes)
    assert (sizes <= 0.012 * (1 + 1e-6) + 2.0**-24).all()
    assert all(check.passed for check in result.checks if check.name != "classes")
    assert result.images.min() >= 0 and result.images.max() <= 1


@pytest.mark.parametrize("change", [dict(batch_size=1), dict(batch_size=7), dict(batch_size=256)])
def test_verdicts_do_not_depend_on_the_batch_size(result, change):
    same(autoattack(KEY, LOGITS, X, Y, **SHORT, **change), result)


def test_verdicts_do_not_depend_on_the_other_images(result):
    rows = slice(0, 5)
    same(autoattack(KEY, LOGITS, X[rows], Y[rows], **SHORT), result, rows)


@pytest.mark.slow
def test_verdicts_do_not_depend_on_the_number_of_devices(result):
    assert len(jax.devices()) == 2
    same(autoattack(KEY, LOGITS, X, Y, **SHORT, devices=jax.devices()), result)


def test_verdicts_do_not_depend_on_early_exit(result):
    full = autoattack(KEY, LOGITS, X, Y, **SHORT, early_exit=False)
    np.testing.assert_array_equal(full.robust, result.robust)
    np.testing.assert_array_equal(full.broken_by, result.broken_by)
    assert full.evaluations["apgd-ce"].backward == 39 * 13
    assert full.evaluations["apgd-ce"].backward > result.evaluations["apgd-ce"].backward


def test_individual_mode_attacks_every_image_with_every_attack(result):
    chosen = SHORT | dict(version="custom", attacks=["apgd-ce", "square"], eps=0.04)
    chosen |= dict(num_steps=3, num_queries=300)
    found = autoattack(KEY, LOGITS, X, Y, **chosen, individual=True)
    first, second = found.individual
    np.testing.assert_array_equal(found.robust, first & second)
    assert found.accuracy["apgd-ce"] == first.mean() >= found.accuracy["square"]
    both = ~first & ~second & (found.broken_by != "clean")
    assert both.any() and (found.broken_by[both] == "apgd-ce").all()
    alone = autoattack(KEY, LOGITS, X, Y, **chosen | dict(attacks=["apgd-ce"]))
    np.testing.assert_array_equal(alone.robust, first)
    assert f"square alone: {100 * second.mean():.2f} %" in found.summary()
    assert result.individual.shape == (0, 40)


def test_options_of_the_published_code_and_of_the_paper():
    def plan(**options):
        return make_plan("standard", "linf", 10, **options)[0]

    paper = plan(apgd_rule="paper")
    assert {paper[name].rule for name in ("apgd-ce", "apgd-t")} == {"paper"}
    assert plan(square_shared=True)["square"].shared
    assert plan(square_full_range=True)["square"].full_range
    chosen = SHORT | dict(version="custom", attacks=["square"], eps=0.03)
    own = autoattack(KEY, LOGITS, X, Y, **chosen)
    shared = autoattack(KEY, LOGITS, X, Y, **chosen, square_shared=True)
    assert (own.broken_step != shared.broken_step).any()
    # The same squares whatever the place in the data set, but only with the option.
    moved = np.r_[5:10, 0:5]
    other = autoattack(KEY, LOGITS, X[moved], Y[moved], **chosen, square_shared=True)
    np.testing.assert_array_equal(other.broken_step, shared.broken_step[moved])
    other = autoattack(KEY, LOGITS, X[moved], Y[moved], **chosen)
    assert (other.broken_step != own.broken_step[moved]).any()
    full = autoattack(KEY, LOGITS, X, Y, **chosen, square_full_range=True)
    assert (full.broken_step != own.broken_step).any()


def test_another_key_gives_other_adversarial_images(result):
    other = autoattack(jax.random.key(8), LOGITS, X, Y, **SHORT)
    assert (other.images != result.images).any()


def test_new_weights_need_no_new_compilation():
    def apply(weights, x):
        return x.reshape(x.shape[0], -1) @ weights

    # No attack breaks more than 8 images, which are confirmed in one block of 8.
    def run(seed):
        weights = jax.random.normal(jax.random.key(seed), (54, 5))
        model = jax.tree_util.Partial(apply, weights)
        y = np.asarray(model(jnp.asarray(X)).argmax(1))
        return autoattack(KEY, model, X, y, **SHORT | dict(eps=0.01 + 0.01 * seed))

    programs = (_driver.begin, _driver.advance, _driver.logits_of)
    first, counts = run(0), [program._cache_size() for program in programs]
    second = run(2)
    assert [program._cache_size() for program in programs] == counts
    assert (first.robust != second.robust).any()


def test_a_store_resumes_and_refuses(result, tmp_path, monkeypatch):
    store = tmp_path / "store"

    class Stop(Exception):
        pass

    def stop(progress):
        if progress.attack == "apgd-t" and progress.images_left == 0:
            raise Stop

    with pytest.raises(Stop):
        autoattack(KEY, LOGITS, X, Y, **SHORT | dict(progress=stop), store=store, batch_size=16)
    written = sorted(store.glob("*.npz"))
    assert len(written) >= 6
    (store / "000099.npz.partial").write_bytes(b"half a record")
    asked = []
    attack = Chunks.attack
    monkeypatch.setattr(
        Chunks, "attack", lambda self, *args: asked.append(args[:2]) or attack(self, *args)
    )
    resumed = autoattack(KEY, LOGITS, X, Y, **SHORT, store=store)
    same(resumed, result)
    assert resumed.evaluations == result.evaluations
    assert asked and (0, 0) not in asked
    asked.clear()
    same(autoattack(KEY, LOGITS, X, Y, **SHORT, store=store), result)
    assert not asked

    other = cases.jax_logits(MODEL._replace(weights=MODEL.weights * 1.0001))
    for arguments, message in [
        ((KEY, other, X, Y), "model was"),
        ((KEY, LOGITS, X[::-1].copy(), Y), "images was"),
        ((jax.random.key(1), LOGITS, X, Y), "key was"),
    ]:
        with pytest.raises(ValueError, match=message):
            autoattack(*arguments, **SHORT, store=store)
    with pytest.raises(ValueError, match="eps was"):
        autoattack(KEY, LOGITS, X, Y, **SHORT | dict(eps=0.02), store=store)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="contains other files"):
        autoattack(KEY, LOGITS, X, Y, **SHORT, store=tmp_path)


def test_result_can_be_saved_and_printed(result, tmp_path):
    result.save(tmp_path / "result.npz")
    loaded = AutoAttackResult.load(tmp_path / "result.npz")
    same(loaded, result)
    assert loaded.evaluations == result.evaluations and loaded.checks == result.checks
    assert loaded.settings == result.settings and loaded.accuracy == result.accuracy
    assert {"model", "key", "precision", "versions"} <= set(loaded.settings)
    text = result.summary()
    assert f"robust accuracy {100 * result.robust_accuracy:.2f} %" in text and "apgd-t" in text
    counts = result.per_class
    assert sum(number for number, _, _ in counts.values()) == 40
    total = sum(number * robust for number, _, robust in counts.values())
    np.testing.assert_allclose(total / 40, result.robust_accuracy)


def test_figure(result):
    pixels = result.figure(X, number=3)
    zoom = 96 // 6
    assert pixels.shape == (3 * (6 * zoom + 4), 3 * (9 * zoom + 4), 3)
    assert pixels.dtype == np.uint8
    index = np.flatnonzero((result.broken_by != "") & (result.broken_by != "clean"))[0]
    expected = np.round(255 * X[index, 0, 0, 0])
    assert (pixels[2 : 2 + zoom, 2 : 2 + zoom] == expected).all()


def test_evaluations_of_an_unbroken_image_are_those_of_the_reference():
    constant = lambda x: jnp.eye(10)[jnp.zeros(x.shape[0], int)] + 0 * x.sum((1, 2, 3))[:, None]
    found = autoattack(KEY, constant, X[:1], np.zeros(1, int), progress=False)
    expected = {
        "clean": (5, 0),
        "apgd-ce": (102, 101),
        "apgd-t": (919, 909),
        "fab-t": (1828, 900),
        "square": (5003, 0),
    }
    assert found.evaluations == {name: Evaluations(*cost) for name, cost in expected.items()}
    assert sum(cost.forward for cost in found.evaluations.values()) == 7857
    assert sum(cost.backward for cost in found.evaluations.values()) == 1910
    (check,) = [check for check in found.checks if check.name == "gradients"]
    assert not check.passed and "zero" in check.message


@pytest.mark.parametrize(
    ("norm", "eps"), [("l2", 0.08), pytest.param("l1", 0.5, marks=pytest.mark.slow)]
)
def test_other_norms(norm, eps):
    found = autoattack(KEY, LOGITS, X[:12], Y[:12], norm=norm, **SHORT | dict(eps=eps))
    assert 0 < found.robust.sum() < 11
    assert (found.norms <= eps * (1 + 1e-5)).all()
    assert all(check.passed for check in found.checks if check.name != "classes")


@pytest.mark.parametrize("classes", [2, *(pytest.param(k, marks=pytest.mark.slow) for k in (3, 4))])
def test_few_classes(classes):
    few = lambda x: LOGITS(x)[:, :classes]
    y = np.asarray(few(jnp.asarray(X[:6])).argmax(1))
    found = autoattack(KEY, few, X[:6], y, **SHORT)
    names = {2: "apgd-margin", 3: "apgd-dlr", 4: "apgd-t"}
    assert list(found.accuracy)[2] == names[classes]
    notes = [check.message for check in found.checks if check.name == "classes"]
    assert any(f"{classes} classes" in note or f"has {classes}" in note for note in notes)
    with pytest.raises(ValueError, match="few_classes"):
        autoattack(KEY, few, X[:6], y, **SHORT, few_classes="error")


def test_all_images_wrong_already():
    y = (Y[:3] + 1) % 5
    y[:] = [(int(p) + 1) % 5 for p in cases.predictions(MODEL, X[:3])]
    found = autoattack(KEY, LOGITS, X[:3], y, **SHORT)
    assert found.robust_accuracy == 0 and set(found.broken_by) == {"clean"}
    assert sum(cost.forward for cost in found.evaluations.values()) == 3


def test_images_that_are_not_misclassified_on_their_own_stay_robust():
    def stubborn(x):
        logits = LOGITS(x)
        return logits + 100 * jax.nn.one_hot(Y[0], 5)[None] if x.shape[0] == 1 else logits

    found = autoattack(
        KEY, stubborn, X[:1], Y[:1], **SHORT | dict(eps=0.3), version="custom", attacks=["apgd-ce"]
    )
    assert found.robust.all() and found.broken_by[0] == ""
    failed = {check.name: check.message for check in found.checks if not check.passed}
    assert "not misclassified on its own" in failed["verification"] and "batch" in failed


def test_randomised_models():
    noisy = lambda x, key: LOGITS(x) + 0.05 * jax.random.normal(key, (x.shape[0], 5))
    short = SHORT | dict(num_steps=5, eps=0.03)
    found = autoattack(KEY, noisy, X[:8], Y[:8], version="rand", **short)
    assert list(found.accuracy) == ["clean", "apgd-ce", "apgd-dlr"]
    assert 0 <= found.robust.sum() < 7
    assert found.evaluations["apgd-ce"].backward == int(found.accuracy["clean"] * 8) * 6 * 20
    part = autoattack(KEY, noisy, X[:3], Y[:3], version="rand", **short)
    same(part, found, slice(0, 3))


CHECK = dict(version="custom", attacks=["apgd-ce"], eps=0.01, num_steps=3, progress=False)


@pytest.mark.parametrize(
    ("model", "name"),
    [
        (lambda x: jax.nn.softmax(LOGITS(x)), "logits"),
        (lambda x: LOGITS((x - x.mean(0)[None]) / (x.std(0)[None] + 0.1)), "batch"),
        (lambda x: LOGITS(jnp.round(x * 8) / 8), "gradients"),
        (lambda x: LOGITS(x) / 0, "finite"),
    ],
)
def test_checks_warn(model, name):
    found = autoattack(KEY, model, X[:6], Y[:6], **CHECK)
    assert name in {check.name for check in found.checks if not check.passed}
    (check,) = [check for check in found.checks if check.name == name]
    assert "\n" not in check.message
    assert f"WARNING {name}: {check.message}" in found.summary().splitlines()


def test_randomness_without_a_key_is_noticed():
    rng = np.random.default_rng(0)

    def random(x):
        shape = jax.ShapeDtypeStruct((x.shape[0], 5), jnp.float32)
        draw = lambda: rng.normal(size=shape.shape).astype(np.float32)
        noise = jax.lax.stop_gradient(jax.experimental.io_callback(draw, shape))
        return LOGITS(x) + noise

    import jax.experimental

    from jaxadv.attacks._autoattack.checks import check_model

    call = lambda x, _: random(x)
    found = check_model(call, call, jnp.asarray(X[:6]), jnp.asarray(Y[:6]), False)
    assert "deterministic" in {check.name for check in found if not check.passed}


def test_progress_is_reported_to_a_function():
    seen = []
    autoattack(KEY, LOGITS, X[:4], Y[:4], **SHORT | dict(progress=seen.append))
    assert {"apgd-ce", "apgd-t"} <= {progress.attack for progress in seen}
    assert all(0 <= progress.accuracy <= 1 and progress.images_left >= 0 for progress in seen)


def test_plans_are_those_of_the_published_code():
    def names(*args):
        plan = make_plan(*args)[0].items()
        return [(name, kernel.num_restarts, kernel.num_targets) for name, kernel in plan]

    assert names("standard", "linf", 10) == [
        ("apgd-ce", 1, 0), ("apgd-t", 1, 9), ("fab-t", 1, 9), ("square", 1, 0),
    ]  # fmt: skip
    assert names("standard", "l1", 100)[:2] == [("apgd-ce", 5, 0), ("apgd-t", 1, 5)]
    assert names("plus", "l2", 10) == [
        ("apgd-ce", 5, 0), ("apgd-dlr", 5, 0), ("fab", 5, 0), ("square", 1, 0),
        ("apgd-t", 1, 9), ("fab-t", 1, 9),
    ]  # fmt: skip
    assert names("rand", "linf", 10) == [("apgd-ce", 1, 0), ("apgd-dlr", 1, 0)]
    assert make_plan("standard", "l1", 10)[0]["apgd-ce"].three_radii
    assert not make_plan("plus", "l1", 10)[0]["apgd-ce"].three_radii
    assert {kernel.eot for kernel in make_plan("rand", "l1", 10)[0].values()} == {20}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(version="standart"), "did you mean 'standard'"),
        (dict(attacks=["square"]), "requires version='custom'"),
        (dict(version="custom"), "needs attacks"),
        (dict(version="custom", attacks=["apgd"]), "attacks='apgd'"),
        (dict(apgd_rule="papers"), "did you mean 'paper'"),
        (dict(batch_size=0), "batch_size=0"),
        (dict(eps=8), "units"),
        (dict(norm="Linf"), "did you mean 'linf'"),
    ],
)
def test_misuse(change, message):
    with pytest.raises(ValueError, match=message):
        autoattack(KEY, LOGITS, X, Y, **SHORT | change)


def test_data_that_make_no_sense():
    with pytest.raises(ValueError, match="rescale"):
        autoattack(KEY, LOGITS, X * 255, Y, **SHORT)
    with pytest.raises(ValueError, match="5 classes"):
        autoattack(KEY, LOGITS, X, Y + 5, **SHORT)
    with pytest.raises(ValueError, match="float32"):
        autoattack(KEY, LOGITS, X.astype(np.float64), Y, **SHORT)
