"""Every public function under every strict mode of JAX."""

import contextlib
import inspect

import jax
import pytest

from tests.helpers import strict_cases


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
    [
        pytest.param(case, marks=pytest.mark.slow) if case in SLOW else case
        for case in strict_cases.CASES
    ],
)
@pytest.mark.parametrize("mode", ["strict", pytest.param("64 bits", marks=pytest.mark.slow)])
def test_public_functions_run(mode, case):
    with MODES[mode]():
        strict_cases.CASES[case]()


def test_no_public_function_is_left_out():
    left_out = {}
    for package, calls in strict_cases.PACKAGES.items():
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
