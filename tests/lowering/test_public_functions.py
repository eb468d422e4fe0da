"""Every program that a public function compiles lowers for the accelerators that are not here."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv import models
from tests.helpers.lowerings import PLATFORMS, check, lowered, lowerings
from tests.test_strict_modes import CASES as ALL

# The networks are in test_training_programs.py.
CASES = {
    case: call
    for case, call in ALL.items()
    if case not in {f"models.{network.__name__}" for network in models.MODELS.values()}
}
# Documented: the theory computes in float64, but for products with a model of any size, which
# follow the dtype of their inputs.
FLOAT64 = {case for case in CASES if case.startswith("theory.")} - {"theory.matrix_free_jacobian"}
FAST = {"training.to_float", "models.conv2d"}  # in the default tests; `make test-lowering` runs all


@pytest.fixture(scope="module", autouse=True)
def nothing_compiled():
    """Programs that several cases share are lowered in the first of them."""
    jax.clear_caches()


@pytest.mark.parametrize(
    "case", [case if case in FAST else pytest.param(case, marks=pytest.mark.slow) for case in CASES]
)
def test_all_programs_of(case):
    with lowerings() as found:
        CASES[case]()
        jax.jit(lambda x: x + 1)(jnp.zeros(()))  # a program, where others were lowered before
    check(*found, float64=case in FLOAT64)


def test_float64_and_callbacks_are_seen():
    with lowerings() as found:
        np.asarray(jax.jit(lambda x: jnp.sin(x).sum())(jnp.arange(3.0)))
    check(*found)
    assert sum("sine" in one.text for one in found) == 1
    with jax.enable_x64(True):
        wide = lowered(jax.jit(jnp.sin), jnp.arange(3, dtype=jnp.float64))
    check(wide, float64=True)
    with pytest.raises(AssertionError, match="sin"):
        check(wide)
    shape = jax.ShapeDtypeStruct((3,), jnp.float32)
    outside = jax.jit(lambda x: jax.pure_callback(np.sin, shape, x))
    for platforms in ("cpu",), PLATFORMS:  # on others it is refused at once
        with pytest.raises((AssertionError, NotImplementedError), match="callback"):
            check(lowered(outside, jnp.arange(3.0), platforms=platforms))
