"""The fields of a configuration, and the paper's names for its methods."""

from collections.abc import Iterator
from typing import Any, TypeAlias

from ml_collections import ConfigDict, config_dict

from jaxadv.checks import check_choice

from .recipes import SCALES

# An ml_collections.ConfigDict; type checkers can't see the types of its fields.
Config: TypeAlias = Any


# The paper's method names by config file stem.
NAMES = {
    "at": "AT",
    "at_ensgd": "AT+EnSGD",
    "at_2nd_ensgd": "AT+2ndEnSGD",
    "awp": "AWP",
    "awp_ensgd": "AWP+EnSGD",
    "awp_2nd_ensgd": "AWP+2ndEnSGD",
    "trades": "TRADES",
    "trades_ensgd": "TRADES+EnSGD",
    "trades_awp": "TRADES+AWP",
    "trades_awp_ensgd": "TRADES+AWP+EnSGD",
    "trades_awp_ensgd_tuned": "TRADES+AWP+EnSGD (tuned)",
}


def base(scale: str | None = None) -> Config:
    """The base configuration for every config file: plain values, all fields present.

    Args:
        scale: "paper" (also None and ""), "cpu", "laptop" or "smoke": the part after the colon in
        ``--config=configs/at.py:laptop``.

    Raises:
        ValueError: if the scale is unknown.

    Example:
        >>> base("laptop").scale
        'laptop'
    """
    scale = scale or "paper"
    check_choice("scale", scale, SCALES)
    return ConfigDict(
        {
            "method": "",
            "scale": scale,
            "dataset": config_dict.placeholder(str),  # filled by the entry point
            "seed": 0,
            # Model: a name in jaxadv.models; width None means the architecture's default.
            "model": config_dict.placeholder(str),
            "width": config_dict.placeholder(int),
            "normalize": config_dict.placeholder(bool),  # with the data set's mean and std, if any
            "precision": "float32",  # or "bfloat16", for compute only; weights stay float32
            # Data: numbers of images; None means all.
            "train_size": config_dict.placeholder(int),
            "test_size": config_dict.placeholder(int),
            "augment": config_dict.placeholder(str),
            # Whether threads read the training images from the host ("true") or all of them are on
            # each device ("false"), which gives the same results; "auto" streams them if they
            # exceed a third of a device's memory (of a CPU: of its share of the machine's).
            "data": {"stream": "auto"},
            # The loss: cross-entropy at adversarial images (AT), or "trades".
            "objective": "cross_entropy",
            # beta_T, the attack's preset on CIFAR-10 ("paper" or "awp") and initialization, and the
            # order in which passes move BatchNorm's running statistics: "adversarial_first" as in
            # the AWP code, or "clean_first" as in the original.
            "trades": {
                "beta": 6.0,
                "preset": config_dict.placeholder(str),
                "start_noise": 0.001,
                "bn_order": "adversarial_first",
            },
            # Adversarial weight perturbation: gamma_A, and whether SGD's weight decay acts on the
            # perturbed weights, as in the AWP code (the default with SGD; never inside EntropySGD).
            # The term is added to the gradient: leave it off where weight decay is decoupled.
            "awp": {
                "enabled": False,
                "gamma": config_dict.placeholder(float),
                "decay_perturbed": config_dict.placeholder(bool),
            },
            # Optimization.
            "optimizer": "sgd",  # or "entropy_sgd", or another of experiments.settings.optimizers
            # AWP and EntropySGD are off before this epoch; see warm_epochs.
            "warmup_epochs": config_dict.placeholder(int),
            "first_epoch": config_dict.placeholder(int),  # number of the first epoch, 0 or 1
            "num_epochs": config_dict.placeholder(int),
            "batch_size": config_dict.placeholder(int),
            "learning_rate": config_dict.placeholder(float),
            "momentum": 0.9,
            "weight_decay": 5e-4,
            "lr_drops": (0.5, 0.75),  # fractions of the run
            "lr_factor": 0.1,
            "lr_unit": config_dict.placeholder(str),  # updated every "minibatch" or "epoch"
            # EntropySGD: names and presets of jaxadv.optim.entropy_sgd; None means the preset's
            # value or, without a preset, the recommended one with the momentum and decay above.
            "entropy": {
                "preset": config_dict.placeholder(str),
                "learning_rate": config_dict.placeholder(float),  # None means the one above
                "n_in": config_dict.placeholder(int),
                "inner_learning_rate": config_dict.placeholder(float),
                "gamma": config_dict.placeholder(float),
                "noise": config_dict.placeholder(float),
                # The paper's alpha weights the "new" iterate in Algorithm 1 as printed, and the
                # "old" average in the code it builds on; new_weight is derived from it.
                "alpha": config_dict.placeholder(float),
                "alpha_weighs": "old",
                "new_weight": config_dict.placeholder(float),
                "momentum": config_dict.placeholder(float),
                "inner_momentum": config_dict.placeholder(float),
                "weight_decay": config_dict.placeholder(float),
                "second_order": False,
                # Divide by the Hessian of the measure actually sampled; see jaxadv.optim.
                "beta_aware": False,
                "stop_at": 1.0,  # fraction of the run after which SGD takes over
            },
            # The training attack. Over the first ``warmup`` epochs, a number that need not be
            # whole, its radius and step grow linearly from 0.
            "threat": {
                "norm": "linf",
                "eps": config_dict.placeholder(float),
                "step_size": config_dict.placeholder(float),
                "num_steps": 10,
                "warmup": config_dict.placeholder(float),
            },
            # PGD for selection, curves and the final report, in the same norm.
            "eval": {
                "eps": config_dict.placeholder(float),
                "step_size": config_dict.placeholder(float),
                "num_steps": 20,
                "num_restarts": 1,
                "batch_size": config_dict.placeholder(int),
                "every": 1,  # epochs between evaluations on the selection images
            },
            # BatchNorm; the defaults follow the AWP code, see jaxadv.objectives. Under TRADES the
            # attack is in "eval" mode.
            "bn": {
                "attack": config_dict.placeholder(str),
                "attack_updates_stats": True,
                "clean_pass": config_dict.placeholder(bool),
                # On several devices: one statistic for the whole minibatch, or (false) one for each
                # device's images, as in the published code, which exchanges only the gradients.
                "sync": True,
                # EntropySGD: "refresh" the slow weights' statistics before an evaluation, or use
                # those of the "inner" iterates.
                "slow_weights": "refresh",
                "refresh_batches": config_dict.placeholder(int),
            },
            # Log the smoothness of the adversarial loss to metrics.jsonl every so many minibatches
            # (0: never), on training images; see experiments.run.diagnostics.
            "diagnostics": {"every": 0, "num_images": 16},
            # Images that select the checkpoint: held-out "validation" images, or "test" as in the
            # paper (optimistic).
            "selection": "validation",
            "selection_size": config_dict.placeholder(int),
        }
    )


def flatten(config: Config, prefix: str = "") -> Iterator[tuple[str, object]]:
    """All fields of a configuration as (dotted name, value)."""
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def label(config: Config) -> str:
    """The paper's name for a method, with gamma_A: "AWP(0.01)+EnSGD".

    Example:
        >>> from experiments import settings
        >>> label(settings.load_config("awp_ensgd", "paper", "cifar10"))
        'AWP(0.005)+EnSGD'
    """
    name = NAMES.get(str(config.method), str(config.method))
    return name.replace("AWP", f"AWP({config.awp.gamma:g})") if config.awp.enabled else name
