"""Validates the fields of a resolved configuration, individually and together."""

import math
from typing import Any

from jaxadv.augment import AUGMENTATIONS
from jaxadv.checks import check_choice, check_count, check_eps
from jaxadv.models import MODELS

from .recipes import NUM_FEATURES

_MAX_EPOCHS = 100_000  # the minibatch counter has 32 bits


def warm_epochs(config: Any) -> int:
    """Number of epochs with AWP and EntropySGD off, given the number of the first epoch.

    Example:
        >>> from experiments import settings
        >>> config = settings.base()
        >>> config.warmup_epochs, config.first_epoch = 10, 1
        >>> warm_epochs(config)
        9
    """
    return max(config.warmup_epochs - config.first_epoch, 0)


def check(config: Any) -> None:
    """Raises a ``ValueError`` that names the field, its value and the fix.

    Args:
        config: with every field filled.
    """
    for name in ("eps", "step_size"):
        if config.threat[name] is None:
            raise ValueError(
                f"config.threat.{name} has no default for norm {config.threat.norm!r} on "
                f"{config.dataset}; give --config.threat.{name}=..."
            )
    for section in ("threat", "eval"):
        check_eps(
            config[section].eps,
            config.threat.norm,
            num_features=NUM_FEATURES[config.dataset],
            name=f"config.{section}.eps",
        )
    for section, minimum in (("threat", 0), ("eval", 0)):
        check_count(f"config.{section}.num_steps", config[section].num_steps, minimum)
        _check_number(f"config.{section}.step_size", config[section].step_size, 0)
    _check_number("config.threat.warmup", config.threat.warmup, 0)
    for name, minimum in {"num_epochs": 1, "batch_size": 1, "seed": 0, "selection_size": 1}.items():
        check_count(f"config.{name}", config[name], minimum)
    if config.num_epochs > _MAX_EPOCHS:
        raise ValueError(f"config.num_epochs={config.num_epochs} exceeds {_MAX_EPOCHS}")
    if config.threat.warmup >= config.num_epochs:
        raise ValueError(
            f"config.threat.warmup={config.threat.warmup} leaves none of the {config.num_epochs} "
            "epochs for the full radius; use fewer"
        )
    if config.seed >= 2**32:
        raise ValueError(
            f"config.seed={config.seed} must be below 2**32: larger seeds alias smaller ones"
        )
    for name in ("width", "train_size", "test_size"):
        if config[name] is not None:
            check_count(f"config.{name}", config[name], 1)
    check_count("config.warmup_epochs", config.warmup_epochs, 0)
    for section, name, minimum in (
        ("entropy", "n_in", 0),
        ("eval", "batch_size", 1),
        ("eval", "num_restarts", 1),
        ("eval", "every", 1),
        ("bn", "refresh_batches", 0),
        ("diagnostics", "every", 0),
        ("diagnostics", "num_images", 1),
    ):
        check_count(f"config.{section}.{name}", config[section][name], minimum)
    for name in ("learning_rate", "weight_decay", "lr_factor"):
        _check_number(f"config.{name}", config[name], 0)
    for name in ("learning_rate", "inner_learning_rate", "gamma", "noise", "weight_decay"):
        _check_number(f"config.entropy.{name}", config.entropy[name], 0)
    for section, name in (("awp", "gamma"), ("trades", "beta"), ("trades", "start_noise")):
        _check_number(f"config.{section}.{name}", config[section][name], 0)
    for name, value in (
        ("momentum", config.momentum),
        ("entropy.momentum", config.entropy.momentum),
        ("entropy.inner_momentum", config.entropy.inner_momentum),
    ):
        if not 0 <= value < 1:
            raise ValueError(f"config.{name}={value} must be in [0, 1); 0 disables it")
    if not 0 < config.entropy.new_weight <= 1:
        raise ValueError(
            f"config.entropy.new_weight={config.entropy.new_weight} must be in (0, 1]; it is the "
            "newest iterate's weight in the average"
        )
    for drop in config.lr_drops:
        if isinstance(drop, str) or not 0 <= drop <= 1:
            raise ValueError(
                f"config.lr_drops={tuple(config.lr_drops)} must be fractions of the run in [0, 1]; "
                "for drops at epochs 100 and 150 of 200 give (0.5, 0.75)"
            )
    check_choice("config.model", config.model, MODELS)
    check_choice("config.augment", config.augment, AUGMENTATIONS)
    check_choice("config.precision", config.precision, ("float32", "bfloat16"))
    check_choice("config.data.stream", config.data.stream, ("auto", "true", "false"))
    check_choice("config.selection", config.selection, ("validation", "test"))
    check_choice("config.bn.attack", config.bn.attack, ("train", "eval"))
    check_choice("config.bn.slow_weights", config.bn.slow_weights, ("refresh", "inner"))
    check_choice("config.lr_unit", config.lr_unit, ("minibatch", "epoch"))
    if config.first_epoch not in (0, 1):
        raise ValueError(f"config.first_epoch={config.first_epoch} must be 0 or 1")
    _check_method(config)


def _check_method(config: Any) -> None:
    """Checks fields against each other."""
    entropy = config.entropy
    if config.objective == "trades":
        check_choice("config.threat.norm (under TRADES)", config.threat.norm, ("linf", "l2"))
        check_choice("config.bn.attack (under TRADES)", config.bn.attack, ("eval",))
        orders = ("adversarial_first", "clean_first")
        check_choice("config.trades.bn_order", config.trades.bn_order, orders)
    elif config.trades.preset is not None:
        raise ValueError(
            f"config.trades.preset={config.trades.preset!r} has no effect; give "
            "--config.objective=trades too"
        )
    if entropy.beta_aware and not entropy.second_order:
        raise ValueError("config.entropy.beta_aware requires --config.entropy.second_order=true")
    if not 0 < entropy.stop_at <= 1:
        raise ValueError(
            f"config.entropy.stop_at={entropy.stop_at} must be a fraction of the run in (0, 1]; "
            "1 never switches to SGD"
        )
    warm = warm_epochs(config)
    stop = math.ceil(entropy.stop_at * config.num_epochs)
    if config.optimizer == "entropy_sgd" and warm >= stop:
        raise ValueError(
            f"config.warmup_epochs={config.warmup_epochs} leaves no epochs for EntropySGD, which "
            f"ends after epoch {stop}; use fewer"
        )
    if config.awp.enabled and warm >= config.num_epochs:
        raise ValueError(
            f"config.warmup_epochs={config.warmup_epochs} leaves none of the {config.num_epochs} "
            "epochs for AWP; use fewer"
        )
    if config.optimizer == "entropy_sgd" and config.entropy.n_in == 0:
        raise ValueError(
            "config.entropy.n_in=0 means no inner loop; use --config.optimizer=sgd for plain SGD"
        )


def _check_number(name: str, value: float, minimum: float) -> None:
    if not (math.isfinite(value) and value >= minimum):
        raise ValueError(f"{name}={value} must be a finite number >= {minimum}")
