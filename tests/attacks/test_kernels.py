"""Attacks of a user's own inside AutoAttack."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv import attacks
from tests.helpers import autoattack_cases as cases

SIZE = (6, 6, 1)
MODEL = cases.net(3, SIZE, classes=5, features=4, dtype=np.float32)
LOGITS = cases.jax_logits(MODEL)
X = cases.images(4, 48, SIZE, np.float32)
Y = cases.predictions(MODEL, X)
Y[3] = (Y[3] + 1) % 5
EPS = 0.02


@dataclasses.dataclass(frozen=True)
class Noise(attacks.Kernel):
    """Uniform noise, a fresh draw a step."""

    scale: float = 1.0

    def begin(self, batch):
        return attacks.Search.start(batch)

    def step(self, batch, state, number):
        draw = lambda key: jax.random.uniform(key, batch.images.shape[1:], minval=-1.0)
        noise = jnp.sign(jax.vmap(draw)(batch.keys(number)))
        points = batch.project(batch.images + self.scale * batch.eps * noise)
        return state.tried(points, batch.correct(points, number), number)


def run(*plan, **options):
    options = dict(eps=EPS, num_steps=10, num_queries=30, progress=False) | options
    return attacks.autoattack(0, LOGITS, X, Y, version="custom", attacks=plan, **options)


@pytest.fixture(scope="module")
def result():
    return run(Noise(num_steps=60), "apgd-ce")


def test_a_kernel_runs_between_those_of_the_library(result):
    broken = result.broken_by == "noise"
    assert 0 < broken.sum() < 47 and (result.broken_by == "apgd-ce").any()
    assert list(result.accuracy) == ["clean", "noise", "apgd-ce"]
    assert all(check.passed for check in result.checks)
    logits = np.asarray(LOGITS(jnp.asarray(result.images[broken])))
    assert (logits.argmax(1) != Y[broken]).all()
    np.testing.assert_allclose(result.norms[broken], EPS, rtol=1e-4)


def test_costs_are_those_of_early_stopping(result):
    entered = result.broken_by != "clean"
    broken = result.broken_by == "noise"
    steps = np.where(broken, result.broken_step + 1, 60)[entered].sum()
    assert result.evaluations["noise"].forward == steps + entered.sum()  # and a look before
    assert result.evaluations["noise"].backward == 0
    late = run(Noise(num_steps=60), early_exit=False)
    np.testing.assert_array_equal(late.broken_by == "noise", broken)


@pytest.mark.parametrize("options", [dict(batch_size=16), dict(individual=True)])
def test_verdicts_do_not_depend_on_how_images_are_cut(result, options):
    other = run(Noise(num_steps=60), "apgd-ce", **options)
    np.testing.assert_array_equal(other.broken_step, result.broken_step)
    np.testing.assert_array_equal(other.images, result.images)


def test_restarts_and_targets_have_draws_of_their_own():
    found = run(Noise(num_steps=5, num_restarts=4))
    assert len(set(found.broken_run[found.broken_by == "noise"].tolist())) > 1


def test_a_store_resumes_and_knows_the_code_of_a_kernel(result, tmp_path):
    class Stop(Exception):
        pass

    def stop(progress):
        if progress.attack == "noise" and progress.run == "1/1":
            raise Stop

    store = tmp_path / "store"
    with pytest.raises(Stop):
        run(Noise(num_steps=60), "apgd-ce", store=store, batch_size=16, progress=stop)
    resumed = run(Noise(num_steps=60), "apgd-ce", store=store)
    np.testing.assert_array_equal(resumed.images, result.images)
    assert resumed.evaluations == result.evaluations

    def step(self, batch, state, number):
        points = batch.project(batch.images + 0.5 * self.scale * batch.eps)
        return state.tried(points, batch.correct(points, number), number)

    changed = dataclasses.dataclass(frozen=True)(type("Noise", (Noise,), {"step": step}))
    with pytest.raises(ValueError, match="belongs to another evaluation"):
        run(changed(num_steps=60), "apgd-ce", store=store)
    with pytest.raises(ValueError, match="belongs to another evaluation"):
        run(Noise(num_steps=60, scale=0.5), "apgd-ce", store=store)


SIGN = 1.0


def test_a_kernel_changed_in_place_is_never_what_it_was(monkeypatch):
    """As in a notebook: a global that a step reads is assigned anew, or a method is replaced."""

    @dataclasses.dataclass(frozen=True)
    class Shift(Noise):
        def step(self, batch, state, number):
            points = batch.project(batch.images + SIGN * batch.eps)
            return state.tried(points, batch.correct(points, number), number)

    found = run(Shift(num_steps=1), eps=0.2).images - X
    assert (found >= 0).all() and found.any()
    monkeypatch.setitem(globals(), "SIGN", -1.0)
    found = run(Shift(num_steps=1), eps=0.2).images - X
    assert (found <= 0).all() and found.any()
    monkeypatch.setattr(Shift, "step", Noise.step)
    found = run(Shift(num_steps=1), eps=0.2).images - X
    assert (found < 0).any() and (found > 0).any()


def test_a_kernel_that_cheats_is_caught():
    @dataclasses.dataclass(frozen=True)
    class Cheat(Noise):
        def step(self, batch, state, number):
            points = batch.images + 3 * batch.eps
            return state.tried(points, jnp.zeros(len(points), bool), number)

    found = run(Cheat())
    assert found.accuracy["cheat"] == found.accuracy["clean"]
    (check,) = [check for check in found.checks if check.name == "verification"]
    assert not check.passed and "47 adversarial images were rejected" in check.message


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (dict(begin=None), "no begin"),
        (dict(begin=lambda self, batch: jnp.zeros(3)), "one row per image"),
        (dict(begin=lambda self, batch: batch.labels, step=lambda self, b, s, n: s), "robust"),
        (dict(outcome=lambda self, batch, state: state), "Outcome"),
    ],
)
def test_kernels_that_cannot_run_are_refused(members, message):
    if members.get("begin", 0) is None:
        members = dict(begin=attacks.Kernel.begin)
    broken = type("Broken", (Noise,), members)
    with pytest.raises((ValueError, NotImplementedError), match=message):
        run(broken())
    with pytest.raises(ValueError, match="not hashable"):
        run(Noise(scale=np.ones(3)))
    with pytest.raises(ValueError, match=r"attacks=.*Noise"):
        run(Noise)
    with pytest.raises(ValueError, match="requires version='custom'"):
        attacks.autoattack(0, LOGITS, X, Y, attacks=[Noise()], progress=False)


def test_an_attack_of_one_kernel_needs_no_sequence():
    found = attacks.autoattack(
        0, LOGITS, X, Y, eps=EPS, version="custom", attacks=Noise(num_steps=3), progress=False
    )
    assert math.isclose(found.accuracy["noise"], found.robust_accuracy)
