"""Interval arithmetic: it contains exact arithmetic, and the ranges of functions."""

import decimal
import fractions

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv.theory._attack import intervals
from jaxadv.theory._attack.intervals import SILU, SOFTPLUS, UNARY, Interval, point

decimal.getcontext().prec = 50
FUNCTIONS = {
    "exp": (jnp.exp, UNARY["exp"], -5, 5),
    "log": (jnp.log, UNARY["log"], 0.01, 5),
    "log1p": (jnp.log1p, UNARY["log1p"], -0.9, 5),
    "sqrt": (jnp.sqrt, UNARY["sqrt"], 0.01, 5),
    "tanh": (jnp.tanh, UNARY["tanh"], -4, 4),
    "logistic": (jax.nn.sigmoid, UNARY["logistic"], -8, 8),
    "erf": (jax.lax.erf, UNARY["erf"], -4, 4),
    "softplus": (jax.nn.softplus, SOFTPLUS, -8, 8),
    "silu": (jax.nn.silu, SILU, -9, 9),
    "reciprocal": (lambda t: 1 / t, intervals.reciprocal, 0.1, 5),
    "square": (jnp.square, UNARY["square"], -3, 3),
    "cube": (lambda t: t**3, intervals.power(3), -3, 3),
}


def spans(low, high, count=200):
    rng = np.random.default_rng(0)
    ends = np.sort(rng.uniform(low, high, (2, count)), axis=0)
    inner = ends[0] + rng.uniform(size=(50, count)) * (ends[1] - ends[0])
    return Interval(*map(jnp.asarray, ends)), np.clip(inner, ends[0], ends[1])


@pytest.mark.slow
@pytest.mark.parametrize("name", FUNCTIONS)
def test_ranges_contain_the_function_and_its_derivatives(name, x64):
    function, ranges, low, high = FUNCTIONS[name]
    span, inner = spans(low, high)
    derivative = jax.grad(function)
    for part, of in zip(ranges(span), (function, derivative, jax.grad(derivative)), strict=True):
        found = Interval(*map(np.asarray, part))
        values = np.asarray(jax.vmap(jax.vmap(of))(inner))
        # JAX's own derivative has rounding errors too.
        slack = 1e-12 * (1 + np.abs(values))
        assert (values >= found.lo - slack).all() and (values <= found.hi + slack).all()
        # The range is not wider than a fine grid of its points shows.
        low, high = map(np.asarray, span)
        grid = low + np.linspace(0, 1, 2001)[:, None] * (high - low)
        exact = np.asarray(jax.vmap(jax.vmap(of))(grid))
        width, seen = found.hi - found.lo, exact.max(0) - exact.min(0)
        assert (width <= 1.001 * seen + 1e-4 * np.abs(exact).max()).all()


def test_elementary_functions_are_as_accurate_as_assumed(x64):
    rng = np.random.default_rng(0)
    one = decimal.Decimal(1)
    twin = lambda t: (2 * t).exp()
    exact = {
        jnp.exp: lambda t: t.exp(),
        jax.nn.sigmoid: lambda t: one / (one + (-t).exp()),
        jnp.tanh: lambda t: (twin(t) - one) / (twin(t) + one),
        jax.nn.softplus: lambda t: (one + t.exp()).ln(),
        jnp.log1p: lambda t: (one + abs(t)).ln(),
        jnp.log: lambda t: abs(t).ln(),
    }
    points = np.concatenate([rng.normal(size=150), 10 * rng.normal(size=150), [1e-9, -1e-9, 30.0]])
    for function, of in exact.items():
        inputs = np.abs(points) if function in (jnp.log1p, jnp.log) else points
        found = np.asarray(jax.jit(function)(jnp.asarray(inputs)))
        for t, value in zip(inputs.tolist(), found.tolist(), strict=True):
            wanted = of(decimal.Decimal(t))
            error = abs(decimal.Decimal(value) - wanted)
            assert error <= abs(wanted) * decimal.Decimal(intervals.FUNCTION_ERROR) / 2


def test_operations_contain_exact_arithmetic(x64):
    rng = np.random.default_rng(0)
    scales = 10.0 ** rng.integers(-12, 12, (2, 60))
    a, b = rng.normal(size=(2, 60)) * scales
    exact = [[fractions.Fraction(v) for v in side.tolist()] for side in (a, b)]
    ends = [point(jnp.asarray(side)) for side in (a, b)]
    inside = lambda found, wanted: fractions.Fraction(float(found.lo)) <= wanted <= (
        fractions.Fraction(float(found.hi))
    )  # fmt: skip
    for operation, of in (
        (intervals.add, lambda p, q: p + q), (intervals.multiply, lambda p, q: p * q)
    ):  # fmt: skip
        found = Interval(*map(np.asarray, operation(*ends)))
        for i in range(60):
            one = Interval(found.lo[i], found.hi[i])
            assert inside(one, of(exact[0][i], exact[1][i]))
    assert inside(intervals.total(ends[0], (0,)), sum(exact[0]))
    dot = intervals.dot(*ends, jnp.dot, 60)
    assert inside(dot, sum(p * q for p, q in zip(*exact, strict=True)))
    thick = Interval(ends[1].lo - 1, ends[1].hi + 1)
    wide = intervals.dot(ends[0], thick, jnp.dot, 60)
    assert float(wide.hi - wide.lo) >= 2 * np.abs(a).sum() > float(dot.hi - dot.lo)
    assert float(intervals.multiply(thick, thick).lo.min()) < 0


def test_without_outward_rounding_the_last_bits_are_lost(x64, monkeypatch):
    monkeypatch.setattr(intervals, "_RELATIVE", 0.0)
    monkeypatch.setattr(intervals.outward, "__defaults__", (0.0, 0.0))
    with pytest.raises(AssertionError):
        test_operations_contain_exact_arithmetic(None)
