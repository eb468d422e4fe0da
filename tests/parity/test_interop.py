"""PyTorch modules under our attacks beside ``pyautoattack`` under its own, with equal draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("pyautoattack")

import torch

from jaxadv import attacks
from jaxadv.attacks._square import windows
from jaxadv.attacks._square.kernel import SquareDraws
from jaxadv.interop import torch_logits_fn
from tests.helpers import autoattack_cases as cases
from tests.references import autoattack as reference

NAMES = lambda case: getattr(case, "name", case.norm)


class Network(torch.nn.Module):
    """A network of the cases."""

    def __init__(self, model):
        super().__init__()
        self.call = reference.torch_logits(model)

    def forward(self, images):
        return self.call(images)


def logits_fn(model):
    return torch_logits_fn(Network(model).eval())


@pytest.mark.parametrize("case", cases.APGD_CASES[:7], ids=NAMES)
def test_apgd_and_its_targeted_form(case, x64):
    model, x, y, drawn, expected = reference.apgd_case(case)
    options = dict(loss=case.loss, num_steps=case.num_steps, noise=jnp.asarray(drawn)[None])
    attack = attacks.apgd
    if "targeted" in case.loss:
        attack, options["num_targets"] = attacks.apgd_targeted, 1
    found = attack(
        jax.random.key(0), logits_fn(model), jnp.asarray(x), jnp.asarray(y),
        norm=case.norm, eps=cases.EPS[case.norm], l1_exact_zeros=False, **options,
    )  # fmt: skip
    np.testing.assert_array_equal(found.robust, expected["robust"])
    if (case.norm, case.loss) != ("l2", "dlr"):  # where rounding decides at gradients of zero
        np.testing.assert_allclose(found.best_losses, expected["best_losses"], atol=1e-8)


@pytest.mark.parametrize("case", [c for c in cases.FAB_CASES if not c.random_start], ids=NAMES)
def test_fab(case, x64):
    x, expected = reference.fab_case(case)
    model = cases.net(case.seed)
    options = dict(norm=case.norm, eps=cases.EPS[case.norm], num_steps=case.num_steps)
    attack = attacks.fab
    if case.targeted:
        attack, options["num_targets"] = attacks.fab_targeted, 1
    y = jnp.asarray(cases.predictions(model, x))
    found = attack(jax.random.key(0), logits_fn(model), jnp.asarray(x), y, **options)
    np.testing.assert_allclose(found.best_images, expected, atol=1e-8)


@pytest.mark.parametrize("case", cases.SQUARE_CASES, ids=NAMES)
def test_square(case):
    model, x, y, queries, _ = reference.square_case(case)
    found = attacks.square(
        jax.random.key(0), logits_fn(model), jnp.asarray(x), jnp.asarray(y),
        norm=case.norm, eps=case.eps, num_queries=case.num_queries, draws=draws(case, len(x)),
    )  # fmt: skip
    np.testing.assert_array_equal(found.queries, queries)
    assert 0 < found.success.sum() < len(x)


def draws(case, number):
    positions, signs, flips, initial_signs, initial_flips = cases.square_draws(case, number)
    every = lambda values: jnp.repeat(jnp.asarray(values, jnp.float32)[:, None], number, axis=1)
    if initial_flips is not None:
        initial_flips = jnp.asarray(np.broadcast_to(initial_flips, (number, *initial_flips.shape)))
    return SquareDraws(
        jnp.asarray(initial_signs, jnp.float32),
        initial_flips,
        windows.Draws(every(positions), every(signs), every(flips) > 0.5),
    )


def test_pgd_is_that_of_a_loop_in_torch(x64):
    model = cases.net(3)
    x, eps, step = cases.images(4), 0.012, 0.004
    y = torch.from_numpy(cases.predictions(model, x).astype(np.int64))
    network, clean = Network(model), reference.to_torch(x)
    points = clean.clone()
    for _ in range(20):
        points.requires_grad_()
        loss = torch.nn.functional.cross_entropy(network(points), y, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, points)
        points = points.detach() + step * gradient.sign()
        points = torch.clamp(torch.minimum(torch.maximum(points, clean - eps), clean + eps), 0, 1)
    found = attacks.pgd(
        jax.random.key(0), logits_fn(model), jnp.asarray(x), jnp.asarray(y.numpy()),
        norm="linf", eps=eps, step_size=step, num_steps=20, init="zero",
    )  # fmt: skip
    np.testing.assert_allclose(found, reference.to_numpy(points), atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.01), ("l2", 0.1)])
def test_the_attacks_of_the_standard_ensemble_with_equal_draws(norm, eps, x64):
    """APGD-CE, APGD-T and FAB-T on 9 targets, and Square: the same images survive all of them."""
    model = cases.net(5, activation="relu")
    x = cases.images(6, 24)
    y = cases.predictions(model, x)
    ranked = reference.torch_logits(model)(reference.to_torch(x)).argsort(1).numpy()
    noise = np.stack([cases.noise(seed, x.shape, norm, np.float64) for seed in range(10)])
    theirs = np.ones(len(x), bool)
    for run in range(10):
        found = reference.apgd_single_run(
            reference.torch_logits(model), x, y, noise[run], norm=norm, eps=eps, num_steps=100,
            loss="dlr-targeted" if run else "ce", targets=ranked[:, -1 - run] if run else None,
        )  # fmt: skip
        theirs &= found["robust"]
    gradients = theirs.copy()
    for target in range(2, 11):
        fab = cases.FabCase(norm, True, 100, False, 5)
        points = reference.fab_run(fab, model, x, target, eps)
        moved = np.abs(points - x).reshape(len(x), -1)
        size = moved.max(1) if norm == "linf" else np.sqrt((moved**2).sum(1))
        wrong = reference.torch_logits(model)(reference.to_torch(points)).argmax(1).numpy() != y
        theirs &= ~(wrong & (size <= eps))
    given = jnp.asarray(x), jnp.asarray(y)
    options = dict(norm=norm, eps=eps)
    ours = attacks.apgd(
        0, logits_fn(model), *given, num_steps=100, noise=jnp.asarray(noise[:1]), **options
    ).robust
    ours &= attacks.apgd_targeted(
        0, logits_fn(model), *given, num_steps=100, num_targets=9, noise=jnp.asarray(noise[1:]),
        **options,
    ).robust  # fmt: skip
    np.testing.assert_array_equal(ours, gradients)
    ours &= ~attacks.fab_targeted(
        0, logits_fn(model), *given, num_steps=100, num_targets=9, **options
    ).success
    np.testing.assert_array_equal(ours, theirs)
    assert 2 < ours.sum() < 22


@pytest.mark.slow
def test_standard_autoattack():
    """With draws of their own: Square's, on few images, may differ on two of 64."""
    from pyautoattack import AutoAttack

    model = cases.net(5, (8, 8, 3), activation="relu", dtype=np.float32)
    x = cases.images(6, 64, (8, 8, 3), np.float32)
    y = cases.predictions(model, x)
    ours = attacks.autoattack(0, logits_fn(model), x, y, norm="linf", eps=0.01, progress=False)
    same = attacks.autoattack(
        0, cases.jax_logits(model), x, y, norm="linf", eps=0.01, progress=False
    )
    theirs = AutoAttack(Network(model).eval(), norm="Linf", eps=0.01, seed=0, device="cpu")
    points = theirs.run_standard_evaluation(reference.to_torch(x), torch.from_numpy(y).long())
    points = points[0] if isinstance(points, tuple) else points
    robust = reference.torch_logits(model)(points).argmax(1).numpy() == y
    np.testing.assert_array_equal(ours.robust, same.robust)
    assert 5 < robust.sum() < 60 and (robust == ours.robust).sum() >= 62
