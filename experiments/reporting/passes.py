"""Passes of training images through the network: a time axis that no busy machine can bend."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxadv import models

from ..run import build
from ..settings import Config, warm_epochs


def counted(config: Config, rows: Sequence[dict]) -> list[dict]:
    """Metrics rows with "passes": images passed forward or backward through the network so far.

    One forward and one backward pass of a minibatch count as two passes of each of its images.
    Attacks, weight perturbations, and the refresh of EntropySGD's running statistics are counted;
    evaluations on selection images are not.

    Args:
        config: resolved configuration of the run.
        rows: its metrics, from the first epoch on.

    Example:
        >>> from experiments import settings
        >>> config = settings.load_config("at", "laptop", "digits")  # PGD-10, minibatches of 32
        >>> counted(config, [{"epoch": 1, "step": 41}])[0]["passes"] == 41 * 32 * 2 * (10 + 1)
        True
    """
    chained = config.optimizer == "entropy_sgd"
    warm = warm_epochs(config)
    stop = math.ceil(config.entropy.stop_at * config.num_epochs) if chained else 0
    has_norm = _has_batch_norm(config)
    total, before, found = 0, 0, []
    for row in rows:
        epoch = row["epoch"]
        in_chain = chained and warm < epoch <= stop
        each = _gradient(config, has_norm, perturbs=epoch > warm)
        each += bool(config.bn.clean_pass) and not in_chain
        total += (row["step"] - before) * each
        is_evaluated = row.get("selection_robust") is not None
        if in_chain and is_evaluated and has_norm and config.bn.slow_weights == "refresh":
            batches = config.bn.refresh_batches
            total += batches + (batches + 1) // 2 * _attack(config)
        before = row["step"]
        found.append(row | {"passes": total * config.batch_size})
    return found


def _attack(config: Config) -> int:
    """Passes of an attack: TRADES first computes the logits of the clean images."""
    return 2 * config.threat.num_steps + (config.objective == "trades")


def _gradient(config: Config, has_norm: bool, *, perturbs: bool) -> int:
    """Passes of a minibatch's gradient with its attack."""
    loss = 4 if config.objective == "trades" else 2
    extra = 0
    if config.objective == "cross_entropy" and config.awp.enabled and has_norm:
        # The running statistics of a pass at other weights can't be computed without it.
        extra = config.bn.attack == "train" and config.bn.attack_updates_stats
    return _attack(config) + extra + loss * (1 + (perturbs and config.awp.gamma > 0))


def _has_batch_norm(config: Config) -> bool:
    options = build.width_options(config.model, config.width)
    module = models.build(
        config.model, num_classes=10, mean=None, std=None, dtype=jnp.float32, **options
    )
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    return "batch_stats" in jax.eval_shape(module.init, jax.random.key(0), image)
