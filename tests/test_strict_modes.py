"""Every public function under every strict mode of JAX."""

import contextlib
import inspect

import jax
import pytest

from jaxadv import attacks, augment, balls, losses, models, objectives, optim, theory, training
from tests.helpers import strict_cases as cases
from tests.helpers.strict_theory import THEORY

PACKAGES = {
    attacks: cases.ATTACKS,
    losses: cases.LOSSES,
    balls: cases.BALLS,
    augment: cases.AUGMENT,
    objectives: cases.OBJECTIVES,
    optim: cases.OPTIM,
    training: cases.TRAINING,
    models: cases.MODELS,
    theory: THEORY,
}
CASES = {
    f"{package.__name__.removeprefix('jaxadv.')}.{name}": call
    for package, calls in PACKAGES.items()
    for name, call in calls.items()
}


@contextlib.contextmanager
def everything_strict():
    """No promotion of dtypes or ranks, no NaN, no implicit transfer: each only refuses."""
    with (
        jax.numpy_dtype_promotion("strict"),
        jax.numpy_rank_promotion("raise"),
        jax.debug_nans(True),
        jax.transfer_guard("disallow"),
    ):
        yield


MODES = {"strict": everything_strict, "64 bits": lambda: jax.enable_x64(True)}


# They compile for seconds: `make test-slow`.
SLOW = {
    f"theory.{name}"
    for name in (
        "adversarial_loss", "attack_jacobian", "climb_attack", "differentiable_attack",
        "matrix_free_jacobian", "optimal_attack",
    )
}  # fmt: skip


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=pytest.mark.slow) if case in SLOW else case for case in CASES],
)
@pytest.mark.parametrize("mode", ["strict", pytest.param("64 bits", marks=pytest.mark.slow)])
def test_public_functions_run(mode, case):
    with MODES[mode]():
        CASES[case]()


def test_no_public_function_is_left_out():
    left_out = {}
    for package, calls in PACKAGES.items():
        functions = {
            name
            for name, value in vars(package).items()
            if not name.startswith("_")
            and callable(value)
            and not inspect.isclass(value)
            and value.__module__.startswith(package.__name__)
        }
        left_out[package.__name__] = functions - set(calls)
    assert not any(left_out.values()), left_out
