"""SGD and learning rate schedules as in the reference codes."""

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import optax

from ..checks import check_choice
from ..types import Array


def sgd(
    learning_rate: optax.ScalarOrSchedule, *, momentum: float = 0.9, weight_decay: float = 5e-4
) -> optax.GradientTransformation:
    r"""SGD as in PyTorch: :math:`b \leftarrow \mu b + (g + \lambda w)`, :math:`w -= \eta b`.

    Heavy ball, weight decay on all parameters (BatchNorm and biases too), and the learning rate
    outside the buffer, so that a drop immediately affects everything accumulated.

    Args:
        learning_rate: a scalar or an optax schedule of the minibatch counter.
        momentum: mu.
        weight_decay: lambda.

    Returns:
        The optimizer.

    Example:
        >>> import jax.numpy as jnp
        >>> tx = sgd(0.1, momentum=0.0, weight_decay=0.0)
        >>> updates, _ = tx.update(jnp.ones(2), tx.init(jnp.ones(2)), jnp.ones(2))
        >>> updates.tolist()
        [-0.10000000149011612, -0.10000000149011612]
    """
    return optax.chain(
        optax.add_decayed_weights(weight_decay), optax.sgd(learning_rate, momentum=momentum)
    )


def step_decay(
    learning_rate: float,
    *,
    num_epochs: int,
    batches_per_epoch: int,
    drops: Sequence[float] = (0.5, 0.75),
    factor: float = 0.1,
    unit: str = "minibatch",
    first_epoch: int = 0,
) -> optax.Schedule:
    """A learning rate schedule over minibatches, multiplied by ``factor`` at fractions of the run.

    In the AWP code for adversarial training, minibatch i of epoch e uses the rate at
    ``t = e + (i + 1) / batches``, so the *last* minibatch of the epoch before a drop already uses
    the lower rate. Its TRADES code updates the rate once per epoch, and counts epochs from 1: the
    drop "at epoch 100" of 200 comes after 99 epochs (``unit="epoch", first_epoch=1``).

    Args:
        learning_rate: initial rate.
        num_epochs: length of the run.
        batches_per_epoch: minibatches per epoch.
        drops: fractions of the run.
        factor: multiplier of each drop.
        unit: how often the rate is updated, "minibatch" or "epoch".
        first_epoch: number of the first epoch, 0 or 1; for ``unit="epoch"``.

    Returns:
        An optax schedule of the minibatch counter.

    Example:
        >>> rate = step_decay(0.1, num_epochs=200, batches_per_epoch=391)
        >>> [round(float(rate(t)), 6) for t in (100 * 391 - 2, 100 * 391 - 1)]
        [0.1, 0.01]
    """
    check_choice("unit", unit, ("minibatch", "epoch"))
    total = num_epochs * batches_per_epoch

    def boundary(drop: float) -> int:
        if unit == "minibatch":
            return max(math.ceil(drop * total) - 1, 0)
        return max(math.ceil(drop * num_epochs) - first_epoch, 0) * batches_per_epoch

    boundaries = {boundary(drop) for drop in drops}

    # Not optax.piecewise_constant_schedule: it mixes integers with floats, which
    # jax_numpy_dtype_promotion="strict" refuses.
    def schedule(count: Any) -> Array:
        rate = jnp.asarray(learning_rate)
        for threshold in boundaries:
            rate = jnp.where(count >= threshold, factor * rate, rate)
        return rate

    return schedule
