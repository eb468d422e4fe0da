"""jaxadv beside ``pyautoattack`` in one process, on other inputs than the golden files.

Skipped where the package is absent; ``make test-parity`` installs it.
"""

import numpy as np
import pytest

from tests.helpers.arrays import load_arrays

pytest.importorskip("torch")
pytest.importorskip("pyautoattack")

import jax
import jax.numpy as jnp
import torch
from pyautoattack import autopgd_base, fab_projections

from jaxadv import losses
from jaxadv._l1 import project_l1_box
from jaxadv.attacks import autoattack
from jaxadv.attacks._fab.projections import project_to_hyperplane
from tests.helpers import autoattack_cases as cases
from tests.references import autoattack as reference


def test_golden_files_are_what_the_package_gives(golden):
    for name, make in reference.GOLDEN.items():
        stored = load_arrays(golden / f"{name}.npz")
        fresh = make()
        assert set(stored) == set(fresh)
        for entry, value in fresh.items():
            np.testing.assert_allclose(stored[entry], value, atol=1e-6, rtol=1e-6, err_msg=entry)


@pytest.mark.parametrize("classes", [3, 4, 10, 1000])
@pytest.mark.parametrize("ties", [False, True])
def test_losses_and_their_gradients(classes, ties):
    rng = np.random.default_rng(classes)
    z = rng.normal(size=(30, classes)).astype(np.float32)
    if ties:
        z = np.round(z)
    ranks = np.minimum(np.arange(30) % 6, classes - 1)
    y = np.argsort(-z, axis=1, kind="stable")[np.arange(30), ranks]
    target = (y + 1) % classes
    attack = autopgd_base.APGDAttack_targeted(None, eps=1.0, device="cpu")
    attack.y_target = torch.from_numpy(target)
    pairs = [
        (
            losses.cross_entropy,
            lambda z, y: torch.nn.functional.cross_entropy(z, y, reduction="none"),
        ),
        (losses.dlr, attack.dlr_loss),
    ]
    if classes > 3:
        own = lambda z, y: losses.dlr_targeted(z, y, jnp.asarray(target))
        pairs.append((own, attack.dlr_loss_targeted))
    for ours, theirs in pairs:
        logits = torch.from_numpy(z).requires_grad_()
        value = theirs(logits, torch.from_numpy(y))
        value.sum().backward()
        # With ties of the 1st and 3rd logit the loss divides by 1e-12: compare what is finite.
        sane = value.detach().abs().numpy() < 1e6
        mine, pull = jax.vjp(lambda z, f=ours: f(z, jnp.asarray(y)), jnp.asarray(z))
        np.testing.assert_allclose(mine[sane], value.detach()[sane], rtol=1e-5, atol=1e-6)
        if not ties:
            (gradient,) = pull(jnp.ones(30))
            np.testing.assert_allclose(gradient[sane], logits.grad[sane], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("eps", [0.5, 3.0, 10.0, 100.0])
def test_l1_projection(eps):
    rng = np.random.default_rng(0)
    x = rng.uniform(size=(20, 3, 8, 8)).astype(np.float32)
    d = rng.normal(size=x.shape).astype(np.float32)
    theirs = autopgd_base.L1_projection(torch.from_numpy(x), torch.from_numpy(d), eps)
    mine = project_l1_box(jnp.asarray(x), jnp.asarray(d), eps)
    np.testing.assert_allclose(mine, d + theirs.numpy(), atol=5e-5)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_fab_projections(norm, seed):
    points, normals, offsets = cases.hyperplanes(seed)
    project = getattr(fab_projections, f"projection_{norm}")
    theirs = project(*map(torch.from_numpy, (points, normals, offsets))).numpy()
    gaps = ((points.astype(float) * normals).sum(1) - offsets).astype(np.float32)
    mine = np.asarray(project_to_hyperplane(*map(jnp.asarray, (points, normals, gaps)), norm))
    np.testing.assert_allclose(np.abs(mine).sum(1), np.abs(theirs).sum(1), rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.01), ("l2", 0.1), ("l1", 0.8)])
def test_ensemble_verdicts(norm, eps):
    """L3: counts after every attack differ by at most 2 of 64, verdicts agree on 62."""
    from pyautoattack import AutoAttack

    model = cases.net(5, (8, 8, 3), activation="relu", dtype=np.float32)
    x = cases.images(6, 64, (8, 8, 3), np.float32)
    y = cases.predictions(model, x)
    found = autoattack(
        jax.random.key(0), cases.jax_logits(model), x, y, norm=norm, eps=eps, progress=False
    )
    theirs = AutoAttack(reference.torch_logits(model), norm=reference.NORMS[norm], eps=eps, seed=0)
    points = theirs.run_standard_evaluation(
        reference.to_torch(x), torch.from_numpy(y.astype(np.int64))
    )
    points = points[0] if isinstance(points, tuple) else points
    robust = reference.torch_logits(model)(points).argmax(1).numpy() == y
    assert 5 < robust.sum() < 60
    assert (robust == found.robust).sum() >= 62
