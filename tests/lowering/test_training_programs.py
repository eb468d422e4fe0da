"""The compiled training programs of every method in experiments/configs, and of every network."""

import jax
import jax.numpy as jnp
import pytest

from experiments import settings
from experiments.run import build
from experiments.run.task import load_task
from jaxadv import models, optim, training
from tests.helpers.lowerings import check, lowered
from tests.helpers.tiny_runs import CONFIGS, tiny, tiny_norm

FAST = ("awp_2nd_ensgd",)
KEY = jax.eval_shape(lambda: jax.random.key(0))


def slow_unless(names, fast):
    return [name if name in fast else pytest.param(name, marks=pytest.mark.slow) for name in names]


def programs(run, task):
    """The compiled function of each phase and the shapes of its arguments."""
    shapes = run.shapes
    train = task.train
    data = training.DeviceData(
        jax.ShapeDtypeStruct(train.images.shape, jnp.uint8),
        jax.ShapeDtypeStruct(train.labels.shape, jnp.int32),
    )
    for phase in run.program.phases:
        tx = phase.optimizer(phase.first, phase.n_in)
        state = shapes.replace(opt_state=jax.eval_shape(tx.init, shapes.params))
        if phase.n_in:
            extra = phase.extra_minibatch
            step = run.program.entropy_step(tx, phase.n_in, extra_minibatch=extra)
            yield step, (state, data, KEY)
        else:
            step = run.program.sgd_steps(tx, perturbed_decay=phase.perturbed_decay)
            yield step, (state, data, KEY, jax.ShapeDtypeStruct((), jnp.int32))
    if run.refresh is not None:
        yield jax.jit(run.refresh), (shapes, data, KEY)


def check_run(monkeypatch, *names, **overrides):
    """Lowers all programs of a run with BatchNorm."""
    monkeypatch.setitem(models.MODELS, "tiny_norm", tiny_norm)
    config = tiny(*names, model="tiny_norm", width=None, **overrides)
    task = load_task(config)
    run = build.build(config, task)
    number = 0
    for function, arguments in programs(run, task):
        check(lowered(function, *arguments))
        number += 1
    assert number >= 1 + (config.optimizer == "entropy_sgd")


@pytest.mark.parametrize("method", slow_unless(CONFIGS, FAST))
def test_the_programs_of(method, monkeypatch):
    check_run(monkeypatch, method)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", settings.OPTIMIZERS)
def test_the_programs_with(optimizer, monkeypatch):
    check_run(monkeypatch, "at", optimizer=optimizer)


@pytest.mark.slow
@pytest.mark.parametrize("preset", optim.ENTROPY_SGD_PRESETS)
def test_the_programs_with_entropy_sgd_as(preset, monkeypatch):
    check_run(monkeypatch, "at_ensgd", entropy__preset=preset)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dtype"),
    [*((name, "float32") for name in models.MODELS), ("preact_resnet18", "bfloat16")],
)
def test_the_gradients_of(name, dtype):
    """In the images and the parameters; narrow networks have the same operations as wide ones."""
    widths = {"xcit": 16, "convnext": 4}  # multiples of what they are divided into
    width = next((w for family, w in widths.items() if name.startswith(family)), 2)
    options = build.width_options(name, width)
    module = models.build(name, num_classes=4, dtype=jnp.dtype(dtype), **options)
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    variables = jax.eval_shape(module.init, KEY, images)

    def loss(params, rest, points):
        logits, _ = module.apply({**rest, "params": params}, points, train=True, mutable=list(rest))
        return (logits**2).sum()

    rest = {name: tree for name, tree in variables.items() if name != "params"}
    gradient = jax.jit(jax.grad(loss, (0, 2)))
    found = lowered(gradient, variables["params"], rest, images)
    check(found)
    if "convolution" in found.text:  # those of JAX's own derivatives, not the form for CPU
        assert "[f, 0, 1, b]x[i, 0, 1, o]->[0, 1, b, f]" in found.text
