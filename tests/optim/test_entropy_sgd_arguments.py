"""Arguments of EntropySGD that make no sense: each is one error that names it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv import optim
from jaxadv.optim._entropy_sgd import options as _options
from tests.helpers.entropy_quadratic import W0, grad_fn, split


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(preset="ucla"), "preset='ucla'.*did you mean 'ucla_exact'"),
        (dict(preset="paper_fix"), "did you mean 'paper_fixed'"),
        (dict(n_in=-1), "n_in=-1 must be an integer >= 0"),
        (dict(n_in=2.0), "n_in=2.0 must be an integer"),
        (dict(n_in=True), "n_in=True"),
        (dict(n_in=jnp.array(3)), "n_in=3 is an array.*static_args"),
        (dict(gamma=-0.1), "gamma=-0.1 must be a finite number >= 0"),
        (dict(gamma=jnp.array(-0.5)), "gamma=-0.5"),
        (dict(gamma="0.03"), "gamma='0.03' is not a number"),
        (dict(scoping=-1.0), "scoping=-1.0"),
        (dict(noise=-1e-4), "noise=-0.0001"),
        (dict(noise=float("nan")), "noise=nan"),
        (dict(noise_convention="uclaa"), "noise_convention='uclaa'.*did you mean 'ucla'"),
        (dict(new_weight=0.0), r"new_weight=0.0 must be in \(0, 1\]"),
        (dict(new_weight=1.5), "new_weight=1.5"),
        (dict(new_weight="trades"), "new_weight='trades'"),
        (dict(momentum=1.0), r"momentum=1.0 must be in \[0, 1\)"),
        (dict(inner_momentum=-0.1), "inner_momentum=-0.1"),
        (dict(weight_decay=-5e-4), "weight_decay=-0.0005"),
        (dict(inner_weight_decay=-5e-4), "inner_weight_decay=-0.0005"),
        (dict(learning_rate=-0.1), "learning_rate=-0.1"),
        (dict(learning_rate=None), "learning_rate=None"),
        (dict(inner_learning_rate="tie"), "inner_learning_rate='tie'.*'tied'"),
        (dict(learning_rate="tied"), "learning_rate='tied'"),
        (dict(momentum_init="raw"), "momentum_init='raw'"),
        (dict(min_curvature=0.0), "min_curvature=0.0"),
        (dict(beta_aware=True), "beta_aware=True requires second_order=True"),
        (dict(beta_aware=True, second_order=True, noise=0), "beta_aware=True with noise=0"),
        (dict(key=None), r"key=None, but noise=0.0001.*jax.random.key\(seed\)"),
        (dict(key="0"), r"key='0' is not a PRNG key; pass key=jax.random.key\(0\)"),
        (dict(key=-1), r"key=-1 is not a seed in \[0, 2\*\*32\)"),
        (dict(key=jnp.zeros(2)), r"key has dtype float32.*not a PRNG key"),
        (dict(key=jax.random.split(jax.random.key(0))), "key contains keys of shape"),
    ],
)
@pytest.mark.parametrize("factory", [optim.entropy_sgd, optim.entropy_sgd_stepwise])
def test_bad_arguments_are_named_at_construction(factory, options, message):
    arguments = {"learning_rate": 0.1, "key": jax.random.key(0)} | options
    with pytest.raises(ValueError, match=f"(?s){message}"):
        factory(**arguments)


def test_named_new_weights():
    for name, value in {"ucla": 0.25, "trades_slow_a": 0.3, "trades_slow_b": 0.7}.items():
        arguments = {"learning_rate": 0.1, "noise": 0, "new_weight": name}
        assert _options.resolve(None, arguments).new_weight == value


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(batches=np.zeros((20, 3))), "grad_fn=None is not a function"),
        (dict(grad_fn=grad_fn), r"batches=None with n_in=20.*batches=\(\)"),
        (
            dict(grad_fn=grad_fn, batches=split(np.zeros((19, 3)))),
            r"batches\['bias'\] has shape \(19, 1\), but n_in=20",
        ),
        (dict(grad_fn=grad_fn, batches=[1.0]), r"batches\[0\] has shape \(\)"),
        (dict(grad_fn=lambda p, b, c: p, batches=()), "it must return .gradients, carry."),
        (dict(grad_fn=lambda p, b, c: (c, p), batches=()), "gradients of structure"),
        (dict(grad_fn=grad_fn, batches=(), params=None), "params=None"),
        (dict(preset="ucla_exact", grad_fn=grad_fn, batches=()), "grads=None, but momentum_init"),
        (dict(n_in=0), "grads=None with n_in=0"),
    ],
)
def test_bad_calls_are_named(arguments, message):
    factory = {k: arguments[k] for k in ("preset", "n_in") if k in arguments}
    call = {k: v for k, v in arguments.items() if k not in ("preset", "n_in")}
    tx = optim.entropy_sgd(0.1, key=jax.random.key(0), **factory)
    params = split(W0.astype(np.float32))
    state = tx.init(params)
    with pytest.raises(ValueError, match=f"(?s){message}"):
        tx.update(None, state, **({"params": params} | call))
