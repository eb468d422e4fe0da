"""EntropySGD against an independent NumPy version, and the presets."""

import jax
import numpy as np
import pytest

from jaxadv import optim
from jaxadv.optim._entropy_sgd import options as _options
from tests.helpers.entropy_quadratic import W0, draws_of, make_batches, numpy_grad, run
from tests.references import entropy_sgd as entropy_sgd_numpy

# The code of Chaudhari et al. adds the noise to the gradient: it enters with a minus sign.
CODE, PAPER = -1, 1


def run_numpy(
    step, batches, key, *, n_in, sign_of_noise, zero_start=False, first_gradients=None, **options
):
    theta, M, path = W0.copy(), np.zeros(3) if zero_start else None, []
    for t, batch in enumerate(batches):
        shift = np.zeros(3) if first_gradients is None else first_gradients[t]
        theta, M = step(
            theta,
            M,
            t,
            grad=numpy_grad,
            batches=batch,
            draws=sign_of_noise * draws_of(key, n_in, t),
            first_gradient=numpy_grad(theta, shift),
            **options,
        )
        path.append(theta)
    return np.stack(path)


@pytest.mark.parametrize("noise", [0.0, 0.3])
@pytest.mark.parametrize("n_in", [0, 20])
@pytest.mark.parametrize("preset", [None, "ucla_exact"])
def test_agrees_with_the_reference_code(x64, preset, n_in, noise):
    key, batches = jax.random.key(3), make_batches(n_in)
    first = make_batches(1)[:, 0]
    tx = optim.entropy_sgd(0.1, key=key, preset=preset, n_in=n_in, noise=noise)
    expected = run_numpy(
        entropy_sgd_numpy.pytorch_step,
        batches,
        key,
        n_in=n_in,
        sign_of_noise=CODE,
        lr=0.1,
        eps=noise,
        zero_start=preset is None,
        first_gradients=first,
    )
    np.testing.assert_allclose(run(tx, batches, first), expected, rtol=0, atol=1e-12)


def test_second_order_agrees_with_numpy(x64):
    # Noise and gamma large enough for the correction to matter: gamma * var is about 0.2.
    key, batches = jax.random.key(5), make_batches(20)
    common = dict(noise=0.5, gamma=0.6)
    tx = optim.entropy_sgd(0.1, key=key, second_order=True, **common)
    expected = run_numpy(
        entropy_sgd_numpy.pytorch_step,
        batches,
        key,
        n_in=20,
        sign_of_noise=CODE,
        lr=0.1,
        eps=0.5,
        gamma=0.6,
        zero_start=True,
        second_order=True,
    )
    actual = run(tx, batches)
    first_order = run(optim.entropy_sgd(0.1, key=key, **common), batches)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-12)
    assert np.max(np.abs(actual - first_order)) > 1e-3


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_lua_agrees_with_numpy(x64, noise):
    key, batches = jax.random.key(7), make_batches(20)
    tx = optim.entropy_sgd(1.0, key=key, preset="lua", noise=noise)
    expected = run_numpy(
        entropy_sgd_numpy.lua_step,
        batches,
        key,
        n_in=20,
        sign_of_noise=CODE,
        lr=1.0,
        eps=noise,
        zero_start=True,
    )
    np.testing.assert_allclose(run(tx, batches), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("second_order", [False, True])
@pytest.mark.parametrize("preset", ["paper_literal", "paper_fixed"])
def test_paper_presets_agree_with_numpy(x64, preset, second_order):
    key, batches = jax.random.key(11), make_batches(20)
    tx = optim.entropy_sgd(
        0.1, key=key, preset=preset, noise=0.2, second_order=second_order, inner_learning_rate=0.02
    )
    expected = run_numpy(
        entropy_sgd_numpy.paper_step,
        batches,
        key,
        n_in=20,
        sign_of_noise=PAPER,
        lr=0.1,
        inner_lr=0.02,
        eps=0.2,
        sign=-1 if preset == "paper_literal" else 1,
        outer_gamma=preset == "paper_literal",
        second_order=second_order,
    )
    np.testing.assert_allclose(run(tx, batches), expected, rtol=1e-12, atol=1e-12)


def test_presets_resolve_to_the_documented_table():
    """The table in the docstring is the specification of the presets; it must not drift."""
    doc = optim.entropy_sgd.__doc__
    lines = doc[doc.index("argument   ") :].splitlines()
    columns = [None, "ucla_exact", "lua", "paper_literal", "paper_fixed", "theory"]
    rows = 0
    for line in lines[2:]:
        if line.strip().startswith("==="):
            break
        name, *cells = line.replace("(inert)", "").split()
        if name not in optim.EntropySGDOptions.__dataclass_fields__:
            continue
        rows += 1
        for preset, cell in zip(columns, cells, strict=True):
            options = _options.resolve(preset, {"learning_rate": 0.1, "key": jax.random.key(0)})
            value = getattr(options, name)
            assert (str(value) if isinstance(value, str | bool) else float(value)) == (
                cell if isinstance(value, str | bool) else float(cell)
            ), (name, preset)
    assert rows == 15


def test_explicit_arguments_override_the_preset(x64):
    batches = make_batches(20)
    explicit = optim.entropy_sgd(
        0.1, preset="paper_literal", noise=0, ascend=False, scale_by_gamma=False
    )
    fixed = optim.entropy_sgd(0.1, preset="paper_fixed", noise=0)
    np.testing.assert_array_equal(run(explicit, batches), run(fixed, batches))
