"""Every public function under every strict mode of JAX."""

import contextlib
import functools
import inspect

import jax
import pytest
import strict_cases

MODES = {
    "dtype promotion": functools.partial(jax.numpy_dtype_promotion, "strict"),
    "rank promotion": functools.partial(jax.numpy_rank_promotion, "raise"),
    "NaNs": functools.partial(jax.debug_nans, True),
    "64 bits": functools.partial(jax.enable_x64, True),
    "transfers": functools.partial(jax.transfer_guard, "disallow"),
}


@pytest.mark.parametrize("case", strict_cases.CASES)
@pytest.mark.parametrize("double", [False, True])
def test_public_functions_run_under_all_modes_together(double, case):
    with contextlib.ExitStack() as stack:
        for name, mode in MODES.items():
            if name != "64 bits" or double:
                stack.enter_context(mode())
        strict_cases.CASES[case]()


@pytest.mark.slow
@pytest.mark.parametrize("case", strict_cases.CASES)
@pytest.mark.parametrize("mode", MODES)
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
