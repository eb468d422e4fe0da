"""The fields of a run's configuration, and what data set and scale change in them.

A config file in ``experiments/configs`` says what the *method* is. Everything that a data set or a
scale changes stands in the tables of :mod:`experiments.recipes`. A field that neither a config file
nor the command line has set is ``None`` until :func:`resolve` fills it from there, and the resolved
configuration is saved with every run.
"""

import math
from typing import Any, TypeAlias

from ml_collections import ConfigDict, config_dict

from jaxadv._checks import check_choice
from jaxadv._types import NORMS
from jaxadv.models import MODELS as MODELS
from jaxadv.optim._options import DEFAULTS as ENTROPY_DEFAULTS
from jaxadv.optim._options import PRESETS as ENTROPY_PRESETS

from . import recipes
from .recipes import DEFAULTS as DEFAULTS
from .recipes import NUM_FEATURES as NUM_FEATURES
from .recipes import SCALES as SCALES
from .recipes import THREATS as THREATS
from .validation import check
from .validation import warm_epochs as warm_epochs

# An ml_collections.ConfigDict; type checkers can't see the types of its fields.
Config: TypeAlias = Any


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
            "normalize": config_dict.placeholder(bool),  # by the data set's mean and std, if any
            "precision": "float32",  # or "bfloat16": compute only, weights stay float32
            # Data: numbers of images, None is all of them.
            "train_size": config_dict.placeholder(int),
            "test_size": config_dict.placeholder(int),
            "augment": config_dict.placeholder(str),
            # What is minimised: cross-entropy at adversarial images (AT), or "trades".
            "objective": "cross_entropy",
            # beta_T, the attack's preset on CIFAR-10 ("paper" or "awp") and its start.
            "trades": {
                "beta": 6.0,
                "preset": config_dict.placeholder(str),
                "start_noise": 0.001,
            },
            # Adversarial weight perturbation: gamma_A, and whether the weight decay of SGD acts on
            # the perturbed weights, as in the AWP code. Inside EntropySGD it never does.
            "awp": {
                "enabled": False,
                "gamma": config_dict.placeholder(float),
                "decay_perturbed": True,
            },
            # Optimization.
            "optimizer": "sgd",  # or "entropy_sgd"
            # AWP and EntropySGD are off in epochs before this one; see warm_epochs.
            "warmup_epochs": config_dict.placeholder(int),
            "first_epoch": config_dict.placeholder(int),  # number of the first epoch, 0 or 1
            "num_epochs": config_dict.placeholder(int),
            "batch_size": config_dict.placeholder(int),
            "learning_rate": config_dict.placeholder(float),
            "momentum": 0.9,
            "weight_decay": 5e-4,
            "lr_drops": (0.5, 0.75),  # fractions of the run
            "lr_factor": 0.1,
            "lr_unit": config_dict.placeholder(str),  # asked for each "minibatch" or "epoch"
            # EntropySGD: names and presets of jaxadv.optim.entropy_sgd; None is the preset's value
            # and, without a preset, the recommended one with the momentum and decay above.
            "entropy": {
                "preset": config_dict.placeholder(str),
                "learning_rate": config_dict.placeholder(float),  # None is the one above
                "n_in": config_dict.placeholder(int),
                "inner_learning_rate": config_dict.placeholder(float),
                "gamma": config_dict.placeholder(float),
                "noise": config_dict.placeholder(float),
                # The paper's alpha weighs the "new" iterate as its Algorithm 1 is printed, and the
                # "old" average in the code that it builds on; new_weight is what follows from it.
                "alpha": config_dict.placeholder(float),
                "alpha_weighs": "old",
                "new_weight": config_dict.placeholder(float),
                "momentum": config_dict.placeholder(float),
                "inner_momentum": config_dict.placeholder(float),
                "weight_decay": config_dict.placeholder(float),
                "second_order": False,
                # Divide by the Hessian of the measure that is sampled; see jaxadv.optim.
                "beta_aware": False,
                "stop_at": 1.0,  # fraction of the run after which SGD goes on
            },
            # The training attack.
            "threat": {
                "norm": "linf",
                "eps": config_dict.placeholder(float),
                "step_size": config_dict.placeholder(float),
                "num_steps": 10,
            },
            # PGD for selection, curves and the final report; same norm.
            "eval": {
                "eps": config_dict.placeholder(float),
                "step_size": config_dict.placeholder(float),
                "num_steps": 20,
                "num_restarts": 1,
                "batch_size": config_dict.placeholder(int),
                "every": 1,  # epochs between evaluations on the selection images
            },
            # BatchNorm; the defaults are what the AWP code does, see jaxadv.objectives. Under
            # TRADES the attack is in "eval" mode.
            "bn": {
                "attack": config_dict.placeholder(str),
                "attack_updates_stats": True,
                "clean_pass": config_dict.placeholder(bool),
                # EntropySGD: "refresh" the statistics of the slow weights before an evaluation, or
                # use those of the "inner" iterates.
                "slow_weights": "refresh",
                "refresh_batches": config_dict.placeholder(int),
            },
            # Smoothness of the adversarial loss along the run, into metrics.jsonl: see
            # experiments.diagnostics. Every so many minibatches (0 is never), on training images.
            "diagnostics": {"every": 0, "num_images": 16},
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
        dataset: "cifar10", "cifar100", "svhn" or "digits".

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
    check_choice("config.threat.norm", config.threat.norm, NORMS)
    check_choice("config.objective", config.objective, recipes.OBJECTIVES)
    check_choice("config.optimizer", config.optimizer, ("sgd", "entropy_sgd"))
    check_choice("config.entropy.alpha_weighs", config.entropy.alpha_weighs, ("old", "new"))
    for name, value in _defaults(config).items():
        *path, leaf = name.split(".")
        section = config[path[0]] if path else config
        if section[leaf] is None:
            section[leaf] = value
    _fill_awp(config)
    _fill_threat(config)
    _fill_entropy(config)
    check(config)
    return config


def _defaults(config: Config) -> dict[str, Any]:
    """What fills the open fields, by dotted name."""
    dataset, is_paper = config.dataset, config.scale == "paper"
    is_trades = config.objective == "trades"
    defaults = dict(DEFAULTS[dataset][config.scale]) | recipes.OBJECTIVES[config.objective]
    usual = defaults["model"]
    if is_trades:
        defaults |= recipes.TRADES_DATA.get(dataset, {})
        if is_paper:
            defaults["model"] = recipes.TRADES_MODEL.get(dataset, usual)
    model = str(config.model or defaults["model"])
    if is_paper:
        n_in = recipes.inner_steps(dataset, model, is_trades=is_trades, awp=config.awp.enabled)
        defaults["entropy.n_in"] = n_in or defaults["entropy.n_in"]
    if is_trades and config.awp.enabled:
        defaults["warmup_epochs"] = recipes.TRADES_AWP_WARMUP
    elif config.awp.enabled and dataset in recipes.AWP_WARMUP:
        defaults["warmup_epochs"] = recipes.AWP_WARMUP[dataset]
    if not is_paper:
        num_epochs = config.num_epochs or defaults["num_epochs"]
        part = num_epochs / recipes.WARMUP_OF_EPOCHS
        defaults["warmup_epochs"] = round(part * defaults["warmup_epochs"])
    if model != usual:
        defaults.pop("width", None)  # a width of one architecture means nothing for another
    if config.entropy.preset is not None:
        for name in recipes.FEW_OUTER_STEPS:
            defaults.pop(name, None)  # a preset is complete
    return defaults


def _fill_awp(config: Config) -> None:
    awp = config.awp
    if not awp.enabled:
        if awp.gamma:
            raise ValueError(
                f"config.awp.gamma={awp.gamma} without effect; give --config.awp.enabled=true too"
            )
        awp.gamma = 0.0
    elif awp.gamma is None:
        is_trades = config.objective == "trades"
        by_optimizer = recipes.AWP_GAMMA[config.dataset]
        awp.gamma = recipes.AWP_GAMMA_TRADES if is_trades else by_optimizer[config.optimizer]


def _fill_threat(config: Config) -> None:
    threat, evaluation = config.threat, config.eval
    own = threat.eps
    eps, step_size = THREATS[config.dataset].get(threat.norm, (None, None))
    evaluated = eps if own is None else own
    if config.objective == "trades":
        presets = recipes.TRADES_THREATS.get(config.dataset, {}) if threat.norm == "linf" else {}
        if config.trades.preset is None and presets:
            config.trades.preset = "paper"
        if config.trades.preset is not None:
            check_choice("config.trades.preset", config.trades.preset, presets)
            eps, step_size = presets[config.trades.preset]
        elif threat.norm == "l2" and eps is not None:
            # The rule of the TRADES code.
            step_size = 2 * (eps if own is None else own) / max(threat.num_steps, 1)
    threat.eps = eps if threat.eps is None else threat.eps
    threat.step_size = step_size if threat.step_size is None else threat.step_size
    if evaluation.eps is None:
        evaluation.eps = evaluated
    if evaluation.step_size is None:
        usual = THREATS[config.dataset].get(threat.norm, (None, None))[1]
        evaluation.step_size = threat.step_size if usual is None else usual


def _fill_entropy(config: Config) -> None:
    entropy: Any = config.entropy
    values: dict[str, Any]
    if entropy.preset is not None:
        check_choice("config.entropy.preset", entropy.preset, ENTROPY_PRESETS)
        values = ENTROPY_DEFAULTS | ENTROPY_PRESETS[entropy.preset]
    else:
        own = {"momentum": config.momentum, "weight_decay": config.weight_decay}
        values = ENTROPY_DEFAULTS | own | {"inner_momentum": config.momentum}
    # The Lua code has no outer momentum and a rate of 1, the effective step of 0.1 / (1 - 0.9).
    values["learning_rate"] = 1.0 if entropy.preset == "lua" else config.learning_rate
    convert = lambda weight: 1 - weight if entropy.alpha_weighs == "old" else weight
    if entropy.alpha is not None:
        values["new_weight"] = convert(entropy.alpha)
        if entropy.new_weight is not None and not math.isclose(
            entropy.new_weight, values["new_weight"], abs_tol=1e-12
        ):
            raise ValueError(
                f"config.entropy.new_weight={entropy.new_weight} and config.entropy.alpha="
                f"{entropy.alpha} (weight of the {entropy.alpha_weighs}) disagree; give one of them"
            )
    else:
        given = entropy.new_weight
        values["alpha"] = convert(values["new_weight"] if given is None else given)
    for name, value in entropy.items():
        if value is None and name in values:
            entropy[name] = values[name]
