"""The options of EntropySGD with defaults and checks, and its presets.

The gradient steps of the chain and the slow weights are two optax transformations, ``inner`` and
``outer``. Options such as momentum and weight decay configure only the built-in ones.
"""

import dataclasses
import math
import numbers
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from ...checks import check_choice, check_count, is_concrete
from ...keys import typed_key
from ...types import Array, Key
from .._langevin import NOISE_CONVENTIONS, LangevinStep, fold, noise_std
from .._momentum import MomentumSGD, is_zero

# docs/formulas.md D.6 and E28: weight of the newest iterate; alpha = 0.3 of one TRADES run is
# ambiguous.
NEW_WEIGHTS = {"ucla": 0.25, "paper_literal": 0.75, "trades_slow_a": 0.3, "trades_slow_b": 0.7}

# What a number must be, in words and as a test.
_Rule = tuple[str, Callable[[float], bool]]
_SIZE: _Rule = ("a finite number >= 0", lambda x: 0 <= x < math.inf)
_MOMENTUM: _Rule = ("in [0, 1); 0 disables it, 0.9 is typical", lambda x: 0 <= x < 1)
_FRACTION: _Rule = ("in (0, 1]", lambda x: 0 < x <= 1)


def _option(default: Any, check: Callable, *arguments: Any) -> Any:
    """A field checked with ``check(name, value, *arguments)``."""
    return dataclasses.field(default=default, metadata={"check": (check, arguments)})


def _check_number(name: str, value: Any, rule: _Rule, also: str = "") -> None:
    if not is_concrete(value) or (also and callable(value)):
        return
    if not isinstance(value, numbers.Real) and getattr(value, "shape", None) != ():
        raise ValueError(
            f"{name}={value!r} is not a number; pass a Python number{also} or a 0-d array"
        )
    words, holds = rule
    if not holds(float(value)):
        raise ValueError(f"{name}={float(value)} must be {words}")


def _check_optimizer(name: str, value: Any) -> None:
    if value is not None and not (hasattr(value, "init") and hasattr(value, "update")):
        raise ValueError(
            f"{name}={value!r} is not an optax transformation; pass, for example, optax.sgd(0.1)"
        )


def _check_n_in(name: str, value: Any) -> None:
    if isinstance(value, jax.Array):
        raise ValueError(
            f"n_in={value} is an array, but the length of the chain must be a Python int; pass "
            "int(n_in), and under optax.inject_hyperparams static_args=('n_in', 'key')"
        )
    check_count(name, value, 0)


@dataclasses.dataclass(kw_only=True)
class EntropySGDOptions:
    """The options of `entropy_sgd` with their defaults; see its docstring for their meaning.

    Adding an option takes one line here and one where it is read. Nothing here touches a device, so
    that configurations can look up values.

    Raises:
        ValueError: an unknown choice, or a number outside its range.

    Example:
        >>> EntropySGDOptions(learning_rate=0.1, noise=0, new_weight="trades_slow_b").new_weight
        0.7
    """

    learning_rate: Any = _option(None, _check_number, _SIZE, ", a schedule")
    key: Any = None
    inner: Any = _option(None, _check_optimizer)
    outer: Any = _option(None, _check_optimizer)
    n_in: int = _option(20, _check_n_in)
    inner_learning_rate: Any = _option(0.1, _check_number, _SIZE, ", 'tied', a schedule")
    gamma: Any = _option(0.03, _check_number, _SIZE)
    scoping: Any = _option(0.0, _check_number, _SIZE)
    noise: Any = _option(1e-4, _check_number, _SIZE)
    noise_convention: str = _option("ucla", check_choice, NOISE_CONVENTIONS)
    new_weight: Any = _option(0.25, _check_number, _FRACTION)
    momentum: Any = _option(0.9, _check_number, _MOMENTUM)
    inner_momentum: Any = _option(0.9, _check_number, _MOMENTUM)
    nesterov: bool = True
    weight_decay: Any = _option(5e-4, _check_number, _SIZE)
    inner_weight_decay: Any = _option(None, _check_number, _SIZE)
    decay_after_momentum: bool = False
    momentum_init: str = _option("zeros", check_choice, ("zeros", "gradient"))
    scale_by_gamma: bool = False
    ascend: bool = False
    second_order: bool = False
    beta_aware: bool = False
    min_curvature: Any = _option(0.1, _check_number, _FRACTION)

    def __post_init__(self) -> None:
        if isinstance(self.new_weight, str):
            check_choice("new_weight", self.new_weight, NEW_WEIGHTS)
            self.new_weight = NEW_WEIGHTS[self.new_weight]
        if isinstance(self.inner_learning_rate, str) and self.inner_learning_rate == "tied":
            self.inner_learning_rate = self.learning_rate
        if self.inner_weight_decay is None:
            self.inner_weight_decay = self.weight_decay
        if self.outer is not None:  # it has a learning rate and a buffer of its own
            self.learning_rate, self.momentum_init = 1.0, "zeros"
        for field in dataclasses.fields(self):
            check, arguments = field.metadata.get("check", (None, ()))
            if check:
                check(field.name, getattr(self, field.name), *arguments)
        if self.beta_aware and not self.second_order:
            raise ValueError(
                "beta_aware=True requires second_order=True; it corrects the Newton matrix"
            )
        if self.beta_aware and is_zero(self.noise):
            raise ValueError("beta_aware=True with noise=0: the temperature is 0; pass noise > 0")
        if self.key is None and not is_zero(self.noise):
            raise ValueError(
                f"key=None, but noise={self.noise} draws random numbers; pass "
                "key=jax.random.key(seed), or noise=0"
            )
        self.inner = self.inner or MomentumSGD(
            self.inner_momentum, self.nesterov, self.inner_weight_decay, self.decay_after_momentum
        )
        self.outer = self.outer or MomentumSGD(self.momentum, self.nesterov, self.weight_decay)

    def gamma_at(self, count: Array) -> Any:
        """The pull gamma (1 + scoping)^t of outer step ``count``, with t = count + 1."""
        if is_zero(self.scoping):
            return self.gamma
        return self.gamma * (1 + self.scoping) ** (count + 1)

    def inner_step(self, count: Array) -> LangevinStep:
        """The steps of the chain in outer step ``count``."""
        rate, gamma = value_at(self.inner_learning_rate, count), self.gamma_at(count)
        noise = noise_std(self.noise, step_size=rate, convention=self.noise_convention)
        return LangevinStep(self.inner, rate, gamma, noise, self.new_weight, self.ascend)

    def init_key_data(self) -> Array | None:
        """The key as stored in the state: plain words, in a buffer owned by the state.

        Words, because wrappers select, cast and serialize states, which typed keys do not always
        support. In the state, so that one compiled program serves every seed.
        """
        return None if self.key is None else jnp.array(jax.random.key_data(self.key), copy=True)

    def chain_key(self, key_data: Any, count: Array) -> Key | None:
        """The key of outer step ``count``, or None when there is no noise."""
        if is_zero(self.noise):
            return None
        return fold(jax.random.wrap_key_data(key_data, impl=jax.random.key_impl(self.key)), count)


def value_at(rate: Any, count: Array) -> Any:
    """A learning rate in outer step ``count``."""
    return rate(count) if callable(rate) else rate


_PLAIN = dict(momentum=0.0, inner_momentum=0.0, weight_decay=0.0)
_PAPER = dict(_PLAIN, noise_convention="paper", new_weight=0.75)
_LUA = dict(_PLAIN, inner_momentum=0.9, inner_weight_decay=5e-4, decay_after_momentum=True)
_THEORY = dict(_PLAIN, noise=1.0, noise_convention="temperature")

ENTROPY_SGD_PRESETS: dict[str, Callable[..., EntropySGDOptions]] = {
    "ucla_exact": partial(EntropySGDOptions, momentum_init="gradient"),
    "lua": partial(EntropySGDOptions, **_LUA, scoping=1e-3),
    "paper_literal": partial(EntropySGDOptions, **_PAPER, ascend=True, scale_by_gamma=True),
    "paper_fixed": partial(EntropySGDOptions, **_PAPER),
    "theory": partial(EntropySGDOptions, **_THEORY, scale_by_gamma=True),
}

# Options of the built-in steps, which do not apply to a user's optimizer.
_BUILT_IN = {
    "inner": ("inner_momentum", "inner_weight_decay", "decay_after_momentum"),
    "outer": ("learning_rate", "momentum", "weight_decay", "momentum_init"),
}


def resolve(preset: str | None, given: dict[str, Any]) -> EntropySGDOptions:
    """The options of a preset, overridden by those that are given and not None.

    Raises:
        ValueError: an unknown preset, or an option that ``inner`` or ``outer`` replaces.
    """
    if preset is not None:
        check_choice("preset", preset, ENTROPY_SGD_PRESETS)
    given = {name: value for name, value in given.items() if value is not None}
    for side, names in _BUILT_IN.items():
        for name in names:
            if side in given and name in given:
                raise ValueError(f"{name}={given[name]!r} is replaced by {side}; set it there")
    if "key" in given:
        given["key"] = typed_key(given["key"])
    return (EntropySGDOptions if preset is None else ENTROPY_SGD_PRESETS[preset])(**given)
