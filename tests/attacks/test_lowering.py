"""The compiled programs of AutoAttack's kernels, for every version, loss and norm."""

import jax
import jax.numpy as jnp
import pytest

from jaxadv import attacks
from jaxadv.attacks import _driver as driver
from jaxadv.attacks import _model
from jaxadv.attacks._apgd.losses import LOSSES, TARGETED_LOSSES
from jaxadv.attacks._autoattack.plan import VERSIONS, make_plan
from tests.helpers.lowerings import check, lowered

NORMS = ("linf", "l2", "l1")
LIKE = jax.ShapeDtypeStruct
IMAGES = LIKE((2, 8, 8, 3), jnp.float32)  # rows of a block
WEIGHTS = jnp.ones((3, 10))


def logits_fn(points, key=None):
    """A model whose gradient is a convolution's and a product's."""
    noise = 0 if key is None else jax.random.normal(key, points.shape)
    return jax.nn.relu(points + noise).mean((1, 2)) @ WEIGHTS


def kernels():
    """The attacks of all versions, and APGD with every loss, each once."""
    for norm in NORMS:
        found = {}
        for version in VERSIONS:
            if version != "custom":
                for kernel in make_plan(version, norm, 10)[0].values():
                    found[kernel] = version == "rand"
        for loss in (*LOSSES, *TARGETED_LOSSES):
            targets = 9 if loss in TARGETED_LOSSES else 0
            found[attacks.APGD(loss=loss, num_targets=targets)] = False
        classes = set()
        for number, (kernel, randomized) in enumerate(found.items()):
            fast = norm == "linf" and type(kernel) not in classes
            classes.add(type(kernel))
            name = f"{norm}-{number}-{kernel.name}" + ("-rand" if randomized else "")
            marks = () if fast else pytest.mark.slow
            yield pytest.param(norm, kernel, randomized, id=name, marks=marks)


@pytest.mark.parametrize(("norm", "kernel", "randomized"), [*kernels()])
def test_the_segments_of(norm, kernel, randomized):
    key = jax.eval_shape(lambda: jax.random.key(0))
    rows = 1 if randomized else IMAGES.shape[0]
    model = _model.trace_model(logits_fn, (rows, *IMAGES.shape[1:]), IMAGES.dtype, randomized)
    shared = driver.Shared(model, key, LIKE((), jnp.float32), LIKE((), jnp.int32))
    blocks = lambda like: LIKE((2, *like.shape), like.dtype)
    integers = blocks(LIKE((2,), jnp.int32))
    block = driver.Rows(blocks(IMAGES), integers, integers, blocks(LIKE((2,), bool)))
    state = None
    for part in kernel.phases():
        program = driver.Program(part, "", norm, randomized, None)
        check(lowered(driver.begin, shared, block, state, program=program))
        state = jax.eval_shape(
            lambda state, program=program: driver.begin(shared, block, state, program=program),
            state,
        )
        span = LIKE((2,), jnp.int32)
        check(lowered(driver.advance, shared, block, state, span, program=program))
    check(lowered(driver.regroup, (block, state), integers))


@pytest.mark.parametrize("randomized", [False, True])
def test_the_passes_over_the_model(randomized):
    key, one = jax.eval_shape(lambda: jax.random.key(0)), LIKE((), jnp.int32)
    model = _model.trace_model(logits_fn, (1, *IMAGES.shape[1:]), IMAGES.dtype, randomized)
    points, indices = LIKE((2, 1, 8, 8, 3), jnp.float32), LIKE((2, 1), jnp.int32)
    check(
        lowered(
            driver.logits_of, model, key, (one, one), points, indices,
            randomized=randomized, mesh=None,
        )
    )  # fmt: skip
