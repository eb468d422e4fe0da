"""The phases of a run: warm-up with SGD, EntropySGD, SGD again; most runs have one.

Each phase has an optimizer, which starts fresh when the phase does. A chain of EntropySGD that
reaches into the next epoch, or over the end of its phase, is finished first.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxadv import optim, training

from ..settings import Config, warm_epochs


class Phase(NamedTuple):
    """A part of a run with one optimizer.

    Attributes:
        first: its first minibatch.
        end: the minibatch after its last one.
        group: minibatches that one indivisible update takes: 1, or those of an outer step.
        is_entropy: whether its optimizer is EntropySGD, whose running statistics belong to the
            inner iterates.
        init: from parameters to the state of the optimizer.
        advance: (state, data, key, num_steps) -> (state, metrics, number of minibatches taken);
            takes num_steps of them or the largest update that they allow.
    """

    first: int
    end: int
    group: int
    is_entropy: bool
    init: Callable[[Any], Any]
    advance: Callable


def plan(config: Config, batches_per_epoch: int) -> list[tuple[bool, int, int]]:
    """(whether EntropySGD, first minibatch, end) of the phases of a run.

    Args:
        config: resolved configuration.
        batches_per_epoch: minibatches an epoch.

    Example:
        >>> from experiments import settings
        >>> config = settings.load_config("at_ensgd", "paper", "svhn")
        >>> plan(config, 573)  # five epochs of warm-up
        [(False, 0, 2865), (True, 2865, 114600)]
    """
    total = config.num_epochs * batches_per_epoch
    if config.optimizer == "sgd":
        return [(False, 0, total)]
    first = warm_epochs(config) * batches_per_epoch
    stop = math.ceil(config.entropy.stop_at * config.num_epochs) * batches_per_epoch
    group = group_size(config)
    # The last chain is not cut: SGD begins where it ends.
    end = min(first + -(-(stop - first) // group) * group, total)
    parts = [(False, 0, first), (True, first, end), (False, end, total)]
    return [part for part in parts if part[1] < part[2]]


def group_size(config: Config) -> int:
    """Minibatches of one outer step of EntropySGD."""
    return config.entropy.n_in + _has_extra(config)


def make_phases(
    config: Config, program: training.Program, batches_per_epoch: int, noise_key: jax.Array
) -> tuple[Phase, ...]:
    """The phases of a run, in order.

    Args:
        config: resolved configuration.
        program: the programs of its model and objective.
        batches_per_epoch: minibatches an epoch.
        noise_key: typed key of the Langevin noise.
    """
    phases = []
    for is_entropy, first, end in plan(config, batches_per_epoch):
        rate = training.step_decay(
            config.entropy.learning_rate if is_entropy else config.learning_rate,
            num_epochs=config.num_epochs,
            batches_per_epoch=batches_per_epoch,
            drops=config.lr_drops,
            factor=config.lr_factor,
            unit=config.lr_unit,
            first_epoch=config.first_epoch,
        )
        if is_entropy:
            tx, advance = _entropy_programs(config, program, rate, first, noise_key)
        else:
            tx, advance = _sgd_programs(config, program, rate, first)
        group = group_size(config) if is_entropy else 1
        phases.append(Phase(first, end, group, is_entropy, tx.init, advance))
    return tuple(phases)


def weight_perturbation(config: Config, batches_per_epoch: int):
    """gamma_A, a number or (with a warm-up) a schedule of the minibatch counter."""
    gamma, first = config.awp.gamma, warm_epochs(config) * batches_per_epoch
    if not gamma or not first:
        return gamma
    return lambda step: jnp.where(step < first, 0.0, gamma)


class AllPhases(NamedTuple):
    """What makes the optimizer's state: that of the only phase, or one a phase, in a tuple."""

    phases: tuple[Phase, ...]

    def init(self, params: Any) -> Any:
        """States of all phases, each fresh until its phase begins."""
        if len(self.phases) == 1:
            return self.phases[0].init(params)
        return tuple(phase.init(params) for phase in self.phases)


def advance(phases: tuple[Phase, ...], state, data, key: jax.Array, step: int, num_steps: int):
    """Updates within the phase of ``step``.

    Args:
        phases: of the run.
        state: TrainState, donated.
        data: training images on the device.
        key: of the run's training.
        step: minibatches taken so far, ``state.step`` without waiting for the device.
        num_steps: minibatches to take at most, unless the run ends.

    Returns:
        The state, the metrics and the number of minibatches taken.
    """
    number = phase_number(phases, step)
    phase = phases[number]
    if not phase.is_entropy:
        num_steps = min(num_steps, phase.end - step)
    if len(phases) == 1:
        return phase.advance(state, data, key, num_steps)
    states = list(state.opt_state)
    state = state.replace(opt_state=states[number])
    state, metrics, taken = phase.advance(state, data, key, num_steps)
    states[number] = state.opt_state
    return state.replace(opt_state=tuple(states)), metrics, taken


def phase_number(phases: tuple[Phase, ...], step: int) -> int:
    """Which phase takes the minibatch of that number; after the last one, the last phase."""
    return next((i for i, phase in enumerate(phases) if step < phase.end), len(phases) - 1)


def _sgd_programs(config: Config, program: training.Program, rate, first: int):
    schedule = rate if first == 0 else lambda count: rate(first + count)
    tx = training.sgd(schedule, momentum=config.momentum, weight_decay=config.weight_decay)
    perturbed_decay = config.weight_decay if config.awp.decay_perturbed else 0.0
    steps = program.sgd_steps(tx, perturbed_decay=perturbed_decay)

    def advance(state, device_data, key, num_steps):
        return *steps(state, device_data, key, num_steps), num_steps

    return tx, advance


def _entropy_programs(
    config: Config, program: training.Program, rate, first: int, noise_key: jax.Array
):
    entropy = config.entropy
    extra, group = _has_extra(config), group_size(config)

    def optimizer(n_in: int):
        return optim.entropy_sgd(
            lambda outer_step: rate(first + outer_step * group),
            key=noise_key,
            preset=entropy.preset,
            n_in=n_in,
            inner_learning_rate=entropy.inner_learning_rate,
            gamma=entropy.gamma,
            noise=entropy.noise,
            new_weight=entropy.new_weight,
            momentum=entropy.momentum,
            inner_momentum=entropy.inner_momentum,
            weight_decay=entropy.weight_decay,
            second_order=entropy.second_order,
            beta_aware=entropy.beta_aware,
        )

    tx = optimizer(entropy.n_in)
    step = program.entropy_step(tx, entropy.n_in, extra_minibatch=extra)

    def advance(state, device_data, key, num_steps):
        if num_steps >= group:
            return *step(state, device_data, key), group
        # The run ends inside a chain: its last outer step is a shorter one.
        n_in = num_steps - extra
        last = program.entropy_step(optimizer(n_in), n_in, extra_minibatch=extra)
        return *last(state, device_data, key), n_in + extra

    return tx, advance


def _has_extra(config: Config) -> bool:
    return config.entropy.preset in ("ucla_exact", "lua")
