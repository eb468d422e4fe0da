"""The announcement of a run: device, size, expected time, and what is scaled down."""

import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxadv import losses, training

from .. import data
from ..reporting.words import duration
from ..settings import Config
from . import build, environment
from .task import Task

LONG_SECONDS = 12 * 3600  # warn about CPU runs expected to take longer


def announce(
    config: Config, task: Task, run: build.Run, total_steps: int, say: Callable[[str], None]
) -> None:
    """Prints what will run and a time estimate from one timed gradient.

    Args:
        config: resolved configuration.
        task: its data.
        run: its programs.
        total_steps: minibatches of the run.
        say: prints a line.
    """
    seconds = total_steps * minibatch_seconds(config, task, run)
    say(
        f"{environment.device_name()}{_shares(config)}, {config.precision}, {config.model} with "
        f"{run.num_parameters:,} parameters, {total_steps:,} minibatches of "
        f"{config.batch_size} in {config.num_epochs} epochs, about {duration(seconds)} in total"
    )
    if config.scale != "paper":
        say(f"scale {config.scale}: {_scaled_down(config, task)}")
    if jax.default_backend() == "cpu" and seconds > LONG_SECONDS:
        full = "This is the full configuration: on" if config.scale == "paper" else "On"
        say(
            f"{full} this CPU it would take about {duration(seconds)}. For a run of about an hour "
            f"give --config=configs/{config.method}.py:laptop"
        )


def minibatch_seconds(config: Config, task: Task, run: build.Run) -> float:
    """Estimates the time per training minibatch from one timed input gradient on the first images.

    A minibatch costs num_steps input gradients and a parameter gradient, worth about one and a half
    of them; AWP adds a second parameter gradient, and TRADES adds those at the clean images.
    """
    passes = 1.5 * (1 + (config.awp.gamma > 0)) * (1 + (config.objective == "trades"))
    state = run.make_state()
    rows = slice(0, min(config.batch_size, 64))
    first = data.central(task.train.images, task.dataset.image_shape)[rows]
    images = training.to_float(jnp.asarray(first))
    labels = jnp.asarray(task.train.labels[rows])

    @jax.jit
    def gradient(params, batch_stats, images):
        def loss(points):
            logits, _ = run.apply_fn(params, batch_stats, points, True)
            return losses.cross_entropy(logits, labels).sum()

        return jax.grad(loss)(images)

    arguments = (state.params, state.batch_stats, images)
    jax.block_until_ready(gradient(*arguments))
    started = time.monotonic()
    jax.block_until_ready(gradient(*arguments))
    seconds = time.monotonic() - started
    return seconds * (config.threat.num_steps + passes) * config.batch_size / len(labels)


def _shares(config: Config) -> str:
    """Hosts, devices, and images a device, where there are several devices."""
    count, hosts = jax.device_count(), jax.process_count()
    if count == 1:
        return ""
    of_hosts = f" of {hosts} processes" if hosts > 1 else ""
    return f", {count} devices{of_hosts} with {config.batch_size // count} images each"


def _scaled_down(config, task) -> str:
    facts = [f"{len(task.train.labels):,} training and {len(task.test.labels):,} test images"]
    facts += [f"width {config.width}"] if config.width is not None else []
    facts += [f"{config.num_epochs} epochs", "not the paper's experiment"]
    return ", ".join(facts)
