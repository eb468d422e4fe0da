"""The fields of a run's configuration, and what data set and scale change in them.

A config file in ``experiments/configs`` says what the *method* is. Everything that a data set or a
scale changes stands in the tables below. A field that neither a config file nor the command line
has set is ``None`` until :func:`resolve` fills it from here, and the resolved configuration is
saved with every run.
"""

import math
from typing import Any, TypeAlias

from ml_collections import ConfigDict, config_dict

from jaxadv._checks import check_choice, check_count, check_eps
from jaxadv._types import NORMS
from jaxadv.augment import AUGMENTATIONS
from jaxadv.models import MODELS
from jaxadv.optim._options import DEFAULTS as ENTROPY_DEFAULTS
from jaxadv.optim._options import PRESETS as ENTROPY_PRESETS

# An ml_collections.ConfigDict; type checkers can't see the types of its fields.
Config: TypeAlias = Any

SCALES = ("paper", "laptop", "smoke")

# (eps, training and evaluation step size) by data set and norm, images in [0, 1].
# CIFAR-10: Kanai et al., for L2 the runs of the AWP authors. Digits: chosen so that a small network
# under adversarial training ends well above chance and well below its clean accuracy.
THREATS = {
    "cifar10": {"linf": (8 / 255, 2 / 255), "l2": (128 / 255, 15 / 255)},
    "digits": {"linf": (0.2, 0.04), "l2": (1.0, 0.2)},
}

# Numbers in an image: the radius of an L2 or L1 ball is bounded by the box that they span.
NUM_FEATURES = {"cifar10": 32 * 32 * 3, "digits": 8 * 8}

# By data set and scale. A scale inherits the paper's values; where there is no paper (digits),
# "paper" is simply the longest of the three.
_CIFAR10 = {
    "model": "preact_resnet18",
    "num_epochs": 200,
    "batch_size": 128,
    "learning_rate": 0.1,
    "augment": "reflect_crop_flip",
    "selection_size": 1000,
    "entropy.n_in": 20,
    "bn.refresh_batches": 100,
    "bn.clean_pass": True,
    "eval.batch_size": 500,
}
_DIGITS = {
    "model": "small_convnet",
    "num_epochs": 200,
    "batch_size": 32,
    "learning_rate": 0.1,
    "augment": "none",
    "selection_size": 137,
    "entropy.n_in": 20,
    "bn.refresh_batches": 40,
    "eval.batch_size": 360,
    "bn.clean_pass": False,
}
# With some hundred outer steps in all, outer momentum 0.9 would remember a good part of the run:
# the same effective step eta / (1 - m) = 1 with a shorter memory.
_FEW_OUTER_STEPS = {"entropy.learning_rate": 0.5, "entropy.momentum": 0.5}
DEFAULTS = {
    "cifar10": {
        "paper": _CIFAR10,
        "laptop": _CIFAR10
        | {
            "width": 16,
            "num_epochs": 4,
            "batch_size": 64,
            "train_size": 10_000,
            "test_size": 2_000,
            "selection_size": 500,
            "bn.refresh_batches": 20,
            "eval.batch_size": 250,
        }
        | _FEW_OUTER_STEPS,
        "smoke": _CIFAR10
        | {
            "width": 4,
            "num_epochs": 2,
            "batch_size": 16,
            "train_size": 64,
            "test_size": 32,
            "selection_size": 32,
            "entropy.n_in": 2,
            "bn.refresh_batches": 2,
            "eval.batch_size": 32,
        },
    },
    "digits": {
        "paper": _DIGITS,
        "laptop": _DIGITS | {"num_epochs": 60} | _FEW_OUTER_STEPS,
        "smoke": _DIGITS
        | {
            "num_epochs": 2,
            "train_size": 128,
            "test_size": 64,
            "selection_size": 64,
            "batch_size": 32,
            "entropy.n_in": 2,
            "eval.batch_size": 64,
        },
    },
}

# The paper runs more inner iterations on the larger architecture.
N_IN_BY_MODEL = {"wrn34_10": 30}


def base(scale: str | None = None) -> Config:
    """The configuration that every config file starts from: plain values, all fields present.

    Args:
        scale: "paper" (also None and ""), "laptop" or "smoke": what follows the colon in
            ``--config=configs/at.py:laptop``.

    Raises:
        ValueError: on another scale.

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
            # Model: a name of jaxadv.models; width None is the architecture's own.
            "model": config_dict.placeholder(str),
            "width": config_dict.placeholder(int),
            "precision": "float32",  # or "bfloat16": compute only, weights stay float32
            # Data: numbers of images, None is all of them.
            "train_size": config_dict.placeholder(int),
            "test_size": config_dict.placeholder(int),
            "augment": config_dict.placeholder(str),
            # Optimization.
            "optimizer": "sgd",  # or "entropy_sgd"
            "num_epochs": config_dict.placeholder(int),
            "batch_size": config_dict.placeholder(int),
            "learning_rate": config_dict.placeholder(float),
            "momentum": 0.9,
            "weight_decay": 5e-4,
            "lr_drops": (0.5, 0.75),  # fractions of the run
            "lr_factor": 0.1,
            # EntropySGD: names and presets of jaxadv.optim.entropy_sgd; None is the preset's value
            # and, without a preset, the recommended one with the momentum and decay above.
            "entropy": {
                "preset": config_dict.placeholder(str),
                "learning_rate": config_dict.placeholder(float),  # None is the one above
                "n_in": config_dict.placeholder(int),
                "inner_learning_rate": config_dict.placeholder(float),
                "gamma": config_dict.placeholder(float),
                "noise": config_dict.placeholder(float),
                "new_weight": config_dict.placeholder(float),
                "momentum": config_dict.placeholder(float),
                "inner_momentum": config_dict.placeholder(float),
                "weight_decay": config_dict.placeholder(float),
                "second_order": False,
            },
            # The training attack.
            "threat": {
                "norm": "linf",
                "eps": config_dict.placeholder(float),
                "step_size": config_dict.placeholder(float),
                "num_steps": 10,
            },
            # PGD for selection, curves and the final report; same norm and eps.
            "eval": {
                "step_size": config_dict.placeholder(float),
                "num_steps": 20,
                "num_restarts": 1,
                "batch_size": config_dict.placeholder(int),
                "every": 1,  # epochs between evaluations on the selection images
            },
            # BatchNorm; the defaults are what the AWP code does, see jaxadv.objectives.
            "bn": {
                "attack": "train",
                "attack_updates_stats": True,
                "clean_pass": config_dict.placeholder(bool),
                # EntropySGD: "refresh" the statistics of the slow weights before an evaluation, or
                # use those of the "inner" iterates.
                "slow_weights": "refresh",
                "refresh_batches": config_dict.placeholder(int),
            },
            # Which images choose the checkpoint: held-out "validation" images, or "test" as in the
            # paper (optimistic).
            "selection": "validation",
            "selection_size": config_dict.placeholder(int),
        }
    )


def resolve(config: Config, dataset: str) -> Config:
    """A copy with every open field filled for the data set and the scale, and checked.

    Args:
        config: made by a config file, with any overrides.
        dataset: "cifar10" or "digits".

    Raises:
        ValueError: on values that make no sense, naming field, value and remedy.

    Example:
        >>> config = base("laptop")
        >>> config.method = "at"
        >>> resolve(config, "digits").batch_size
        32
    """
    check_choice("dataset", dataset, DEFAULTS)
    check_choice("config.scale", config.scale, SCALES)
    config = config.copy_and_resolve_references()
    if config.dataset not in (None, dataset):
        raise ValueError(
            f"config.dataset={config.dataset!r} under the entry point of {dataset!r}; "
            f"run python -m experiments.{config.dataset}"
        )
    config.dataset = dataset
    defaults = dict(DEFAULTS[dataset][config.scale])
    model = config.model or defaults["model"]
    if config.scale == "paper" and model in N_IN_BY_MODEL:
        defaults["entropy.n_in"] = N_IN_BY_MODEL[model]
    if model != defaults["model"]:
        defaults.pop("width", None)  # a width of one architecture means nothing for another
    if config.entropy.preset is not None:
        for name in _FEW_OUTER_STEPS:
            defaults.pop(name, None)  # a preset is complete
    check_choice("config.threat.norm", config.threat.norm, NORMS)
    if config.threat.norm in THREATS[dataset]:
        eps, step_size = THREATS[dataset][config.threat.norm]
        defaults["threat.eps"] = eps
        defaults["threat.step_size"] = defaults["eval.step_size"] = step_size
    for name, value in defaults.items():
        *path, leaf = name.split(".")
        section = config[path[0]] if path else config
        if section[leaf] is None:
            section[leaf] = value
    _fill_entropy(config)
    _check(config)
    return config


def _fill_entropy(config: Config) -> None:
    entropy = config.entropy
    if entropy.preset is not None:
        check_choice("config.entropy.preset", entropy.preset, ENTROPY_PRESETS)
        values = ENTROPY_DEFAULTS | ENTROPY_PRESETS[entropy.preset]
    else:
        own = {"momentum": config.momentum, "weight_decay": config.weight_decay}
        values = ENTROPY_DEFAULTS | own | {"inner_momentum": config.momentum}
    # The Lua code has no outer momentum and a rate of 1, the effective step of 0.1 / (1 - 0.9).
    values["learning_rate"] = 1.0 if entropy.preset == "lua" else config.learning_rate
    for name, value in entropy.items():
        if value is None and name in values:
            entropy[name] = values[name]


def _check(config: Config) -> None:
    for name in ("eps", "step_size"):
        if config.threat[name] is None:
            raise ValueError(
                f"config.threat.{name} has no default for norm {config.threat.norm!r} on "
                f"{config.dataset}; give --config.threat.{name}=..."
            )
    if config.eval.step_size is None:
        config.eval.step_size = config.threat.step_size
    check_eps(
        config.threat.eps,
        config.threat.norm,
        NUM_FEATURES[config.dataset],
        name="config.threat.eps",
    )
    for section, minimum in (("threat", 0), ("eval", 0)):
        check_count(f"config.{section}.num_steps", config[section].num_steps, minimum)
        _check_number(f"config.{section}.step_size", config[section].step_size, 0)
    for name, minimum in {"num_epochs": 1, "batch_size": 1, "seed": 0, "selection_size": 1}.items():
        check_count(f"config.{name}", config[name], minimum)
    if config.seed >= 2**32:
        raise ValueError(
            f"config.seed={config.seed} must be below 2**32: larger ones would repeat smaller ones"
        )
    for name in ("width", "train_size", "test_size"):
        if config[name] is not None:
            check_count(f"config.{name}", config[name], 1)
    for section, name, minimum in (
        ("entropy", "n_in", 0),
        ("eval", "batch_size", 1),
        ("eval", "num_restarts", 1),
        ("eval", "every", 1),
        ("bn", "refresh_batches", 0),
    ):
        check_count(f"config.{section}.{name}", config[section][name], minimum)
    for name in ("learning_rate", "weight_decay", "lr_factor"):
        _check_number(f"config.{name}", config[name], 0)
    for name in ("learning_rate", "inner_learning_rate", "gamma", "noise", "weight_decay"):
        _check_number(f"config.entropy.{name}", config.entropy[name], 0)
    for name, value in (
        ("momentum", config.momentum),
        ("entropy.momentum", config.entropy.momentum),
        ("entropy.inner_momentum", config.entropy.inner_momentum),
    ):
        if not 0 <= value < 1:
            raise ValueError(f"config.{name}={value} must be in [0, 1); 0 turns it off")
    if not 0 < config.entropy.new_weight <= 1:
        raise ValueError(
            f"config.entropy.new_weight={config.entropy.new_weight} must be in (0, 1]; it is the "
            "weight of the newest iterate in the average"
        )
    for drop in config.lr_drops:
        if isinstance(drop, str) or not 0 <= drop <= 1:
            raise ValueError(
                f"config.lr_drops={tuple(config.lr_drops)} must be fractions of the run in [0, 1]; "
                "for drops at epochs 100 and 150 of 200 give (0.5, 0.75)"
            )
    check_choice("config.model", config.model, MODELS)
    check_choice("config.augment", config.augment, AUGMENTATIONS)
    check_choice("config.optimizer", config.optimizer, ("sgd", "entropy_sgd"))
    check_choice("config.precision", config.precision, ("float32", "bfloat16"))
    check_choice("config.selection", config.selection, ("validation", "test"))
    check_choice("config.bn.attack", config.bn.attack, ("train", "eval"))
    check_choice("config.bn.slow_weights", config.bn.slow_weights, ("refresh", "inner"))
    if config.optimizer == "entropy_sgd" and config.entropy.n_in == 0:
        raise ValueError(
            "config.entropy.n_in=0 leaves no inner loop; use --config.optimizer=sgd for plain SGD"
        )


def _check_number(name: str, value: float, minimum: float) -> None:
    if not (math.isfinite(value) and value >= minimum):
        raise ValueError(f"{name}={value} must be a finite number >= {minimum}")
