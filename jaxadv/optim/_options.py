"""The options that both forms of EntropySGD share: presets, defaults and checks.

Both factories declare every option with default None, so that a preset and an explicit argument
can be told apart; `resolve` fills the rest in, in the order argument, preset, default.
"""

import difflib
import math
import numbers
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..checks import check_choice, check_count, is_concrete
from ..keys import typed_key
from . import _sgld

# SPEC: weight of the newest iterate; alpha = 0.3 of one TRADES run can be read either way.
NEW_WEIGHTS = {"ucla": 0.25, "paper_literal": 0.75, "trades_slow_a": 0.3, "trades_slow_b": 0.7}
MOMENTUM_INITS = ("zeros", "gradient")
TIED = "tied"

DEFAULTS = dict(
    n_in=20,
    inner_learning_rate=0.1,
    gamma=0.03,
    scoping=0.0,
    noise=1e-4,
    noise_convention="ucla",
    new_weight=0.25,
    momentum=0.9,
    inner_momentum=0.9,
    nesterov=True,
    weight_decay=5e-4,
    inner_weight_decay=None,
    decay_after_momentum=False,
    momentum_init="zeros",
    scale_by_gamma=False,
    ascend=False,
    second_order=False,
    beta_aware=False,
    min_curvature=0.1,
)

_PAPER = dict(
    noise_convention="paper", new_weight=0.75, momentum=0.0, inner_momentum=0.0, weight_decay=0.0
)

PRESETS = {
    "ucla_exact": dict(momentum_init="gradient"),
    "lua": dict(
        momentum=0.0,
        weight_decay=0.0,
        inner_weight_decay=5e-4,
        decay_after_momentum=True,
        scoping=1e-3,
    ),
    "paper_literal": dict(_PAPER, scale_by_gamma=True, ascend=True),
    "paper_fixed": _PAPER,
    "theory": dict(
        noise=1.0,
        noise_convention="temperature",
        momentum=0.0,
        inner_momentum=0.0,
        weight_decay=0.0,
        scale_by_gamma=True,
    ),
}


class Options(NamedTuple):
    """Every option resolved; the docstring of `entropy_sgd` says what each means."""

    learning_rate: Any
    key: Any
    n_in: int
    inner_learning_rate: Any
    gamma: Any
    scoping: Any
    noise: Any
    noise_convention: str
    new_weight: Any
    momentum: Any
    inner_momentum: Any
    nesterov: bool
    weight_decay: Any
    inner_weight_decay: Any
    decay_after_momentum: bool
    momentum_init: str
    scale_by_gamma: bool
    ascend: bool
    second_order: bool
    beta_aware: bool
    min_curvature: Any

    def outer_learning_rate(self, count) -> Any:
        """The learning rate eta of outer step ``count``."""
        return self.learning_rate(count) if callable(self.learning_rate) else self.learning_rate

    def gamma_at(self, count) -> Any:
        """The pull gamma (1 + scoping)^t of outer step ``count``, with t = count + 1."""
        if _sgld.is_zero(self.scoping):
            return self.gamma
        return self.gamma * (1 + self.scoping) ** (count + 1)

    def step_arguments(self, count) -> dict[str, Any]:
        """Keyword arguments of the inner step (`_sgld.inner_increment`) in outer step ``count``."""
        rate: Any = self.inner_learning_rate
        if isinstance(rate, str):
            rate = self.outer_learning_rate(count)
        elif callable(rate):
            rate = rate(count)
        return dict(
            step_size=rate,
            gamma=self.gamma_at(count),
            noise_std=_sgld.noise_std(self.noise, step_size=rate, convention=self.noise_convention),
            momentum=self.inner_momentum,
            nesterov=self.nesterov,
            weight_decay=self.inner_weight_decay,
            decay_after_momentum=self.decay_after_momentum,
            ascend=self.ascend,
        )

    def init_key_data(self) -> jax.Array | None:
        """The key as the state holds it: plain words, in a buffer that the state owns.

        Words, because wrappers select, cast and serialise states, which typed keys do not allow
        everywhere. In the state at all, so that one compiled program serves every seed.
        """
        return None if self.key is None else jnp.array(jax.random.key_data(self.key), copy=True)

    def step_key(self, key_data, count) -> Any:
        """The key of outer step ``count``, or None when there is no noise."""
        if _sgld.is_zero(self.noise):
            return None
        key = jax.random.wrap_key_data(key_data, impl=jax.random.key_impl(self.key))
        return jax.random.fold_in(key, count)


def _number(name: str, value: Any) -> float | None:
    """The value as a float, or None if it is a tracer and therefore not known yet."""
    if not is_concrete(value):
        return None
    if isinstance(value, numbers.Real) or jnp.shape(value) == () and hasattr(value, "dtype"):
        return float(value)
    raise ValueError(f"{name}={value!r} is not a number; pass a Python number or a 0-d array")


def _check_not_negative(name: str, value: Any) -> None:
    number = _number(name, value)
    if number is not None and not 0 <= number < math.inf:
        raise ValueError(f"{name}={number} must be a finite number >= 0")


def _check_momentum(name: str, value: Any) -> None:
    number = _number(name, value)
    if number is not None and not 0 <= number < 1:
        raise ValueError(f"{name}={number} must be in [0, 1); 0 turns it off, 0.9 is usual")


def _check_positive_fraction(name: str, value: Any, meaning: str) -> None:
    number = _number(name, value)
    if number is not None and not 0 < number <= 1:
        raise ValueError(f"{name}={number} must be in (0, 1]: it is {meaning}")


def _check_rate(name: str, value: Any, tied: bool) -> None:
    if callable(value) or (tied and value == TIED):
        return
    if isinstance(value, str):
        also = f", a schedule or {TIED!r}" if tied else " or a schedule"
        raise ValueError(f"{name}={value!r} is not a learning rate; pass a number{also}")
    _check_not_negative(name, value)


def _check_n_in(n_in: Any) -> None:
    if isinstance(n_in, jax.Array):
        raise ValueError(
            f"n_in={n_in} is an array, but the length of the chain must be a Python int; pass "
            "int(n_in), and under optax.inject_hyperparams static_args=('n_in', 'key')"
        )
    check_count("n_in", n_in, 0)


def _resolve_key(key: Any, noise: Any) -> Any:
    if key is not None:
        return typed_key(key)
    if not _sgld.is_zero(noise):
        raise ValueError(
            f"key=None, but noise={noise} draws random numbers; pass key=jax.random.key(seed), "
            "or noise=0"
        )
    return None


def _check_preset(preset: Any) -> None:
    if preset is None or preset in PRESETS:
        return
    # Nearest without a cut-off: "paper" or "UCLA" should find their preset too.
    near = difflib.get_close_matches(str(preset).lower(), PRESETS, n=1, cutoff=0.0)[0]
    raise ValueError(
        f"preset={preset!r} is not one of {', '.join(map(repr, PRESETS))}; "
        f"did you mean {near!r}? None is the recommended default"
    )


def resolve(arguments: dict[str, Any], preset: str | None) -> Options:
    """Fills the arguments that are None from the preset, then from the defaults, and checks all.

    Raises:
        ValueError: an unknown preset or choice, or a number outside its range.
    """
    _check_preset(preset)
    if arguments["learning_rate"] is None:
        raise ValueError("learning_rate=None; pass a number or an optax schedule, for example 0.1")
    given = {name: value for name, value in arguments.items() if value is not None}
    if isinstance(given.get("new_weight"), str):
        check_choice("new_weight", given["new_weight"], NEW_WEIGHTS)
        given["new_weight"] = NEW_WEIGHTS[given["new_weight"]]
    values = DEFAULTS | PRESETS.get(preset or "", {}) | given
    if values["inner_weight_decay"] is None:
        values["inner_weight_decay"] = values["weight_decay"]
    options = Options(**({"key": None} | values))

    _check_rate("learning_rate", options.learning_rate, tied=False)
    _check_rate("inner_learning_rate", options.inner_learning_rate, tied=True)
    _check_n_in(options.n_in)
    for name in ("gamma", "scoping", "noise", "weight_decay", "inner_weight_decay"):
        _check_not_negative(name, getattr(options, name))
    for name in ("momentum", "inner_momentum"):
        _check_momentum(name, getattr(options, name))
    _check_positive_fraction(
        "new_weight", options.new_weight, "the weight of the newest iterate; 1 keeps only the last"
    )
    _check_positive_fraction(
        "min_curvature", options.min_curvature, "the smallest 1 - gamma * variance to divide by"
    )
    check_choice("noise_convention", options.noise_convention, _sgld.NOISE_CONVENTIONS)
    check_choice("momentum_init", options.momentum_init, MOMENTUM_INITS)
    if options.beta_aware and not options.second_order:
        raise ValueError("beta_aware=True needs second_order=True; it corrects the Newton matrix")
    if options.beta_aware and _sgld.is_zero(options.noise):
        raise ValueError(
            "beta_aware=True with noise=0: the temperature 1/beta is 0; pass noise > 0"
        )
    return options._replace(key=_resolve_key(options.key, options.noise))
