"""Fills unset configuration fields for the data set and scale."""

import math
from typing import Any

from jaxadv.checks import check_choice
from jaxadv.optim import ENTROPY_SGD_PRESETS, EntropySGDOptions
from jaxadv.types import NORMS

from . import recipes
from .fields import Config
from .optimizers import OPTIMIZERS
from .recipes import DEFAULTS, THREATS
from .validation import check


def resolve(config: Config, dataset: str) -> Config:
    """A validated copy with every unset field filled for the data set and scale.

    Args:
        config: from a config file, with any overrides.
        dataset: "cifar10", "cifar100", "svhn", "imagenet" or "digits".

    Raises:
        ValueError: if a value is invalid; names the field, the value and the fix.

    Example:
        >>> from experiments import settings
        >>> config = settings.base("laptop")
        >>> config.method = "at"
        >>> resolve(config, "digits").batch_size
        32
    """
    check_choice("dataset", dataset, DEFAULTS)
    check_choice(f"config.scale (of {dataset})", config.scale, DEFAULTS[dataset])
    config = config.copy_and_resolve_references()
    if config.dataset not in (None, dataset):
        raise ValueError(
            f"config.dataset={config.dataset!r} does not match the entry point {dataset!r}; "
            f"run python -m experiments.{config.dataset}"
        )
    config.dataset = dataset
    check_choice("config.threat.norm", config.threat.norm, NORMS)
    check_choice("config.objective", config.objective, recipes.OBJECTIVES)
    check_choice("config.optimizer", config.optimizer, (*OPTIMIZERS, "entropy_sgd"))
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
    """Values for unset fields, by dotted name."""
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
        defaults.pop("width", None)  # a width is specific to its architecture
    if config.entropy.preset is not None:
        for name in recipes.FEW_OUTER_STEPS:
            defaults.pop(name, None)  # a preset is complete
    return defaults


def _fill_awp(config: Config) -> None:
    awp = config.awp
    if awp.decay_perturbed is None:
        # lambda v joins the gradient, which is SGD's decay at theta + v. A decoupled decay, such as
        # that of AdamW, does not pass through the gradient.
        awp.decay_perturbed = config.optimizer in ("sgd", "entropy_sgd")
    if not awp.enabled:
        if awp.gamma:
            raise ValueError(
                f"config.awp.gamma={awp.gamma} has no effect without --config.awp.enabled=true"
            )
        awp.gamma = 0.0
    elif awp.gamma is None:
        is_trades = config.objective == "trades"
        usual = recipes.awp_gamma(config.dataset, config.scale, config.optimizer)
        awp.gamma = recipes.AWP_GAMMA_TRADES if is_trades else usual


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
            # The TRADES code's rule.
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
        check_choice("config.entropy.preset", entropy.preset, ENTROPY_SGD_PRESETS)
        values = vars(ENTROPY_SGD_PRESETS[entropy.preset](learning_rate=0.1, key=0))
    else:
        own = {"momentum": config.momentum, "weight_decay": config.weight_decay}
        values = (
            vars(EntropySGDOptions(learning_rate=0.1, key=0))
            | own
            | {"inner_momentum": config.momentum}
        )
    # The Lua code has no outer momentum and a rate of 1, the effective step 0.1 / (1 - 0.9).
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
