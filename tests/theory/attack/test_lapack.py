"""Factorizations of one program wait for each other: XLA's CPU client deadlocks on them otherwise.

A program that hangs would hang the suite, so the order is read from the jaxpr.
"""

import re

import jax
import jax.numpy as jnp
import pytest
from jax.extend.core import Literal

from jaxadv import theory
from jaxadv.theory._attack.lapack import after

FACTORIZATIONS = {"lu", "eigh", "svd", "qr", "cholesky", "schur", "hessenberg"}


class Order:
    """The factorizations of a program and which of them each value waits for."""

    def __init__(self):
        self.names, self.apart = [], []

    def run(self, jaxpr, known):
        """The factorizations that each output waits for, from those of the inputs."""
        env = dict.fromkeys(jaxpr.constvars, frozenset()) | dict(
            zip(jaxpr.invars, known, strict=True)
        )
        look = lambda atom: frozenset() if isinstance(atom, Literal) else env[atom]
        for equation in jaxpr.eqns:
            given = [look(atom) for atom in equation.invars]
            waits = frozenset().union(*given)
            name, params = equation.primitive.name, equation.params
            inner = params.get("jaxpr") or params.get("call_jaxpr")
            if name == "while":
                body = order_of(params["body_jaxpr"].jaxpr)
                self.apart += body.apart
            if name in FACTORIZATIONS or (name == "while" and body.names):
                before = set(range(len(self.names)))
                self.apart += [(self.names[i], name) for i in before - waits]
                outputs = [waits | {len(self.names)}] * len(equation.outvars)
                self.names.append(name)
            elif inner is not None and len(getattr(inner, "jaxpr", inner).invars) == len(given):
                outputs = self.run(getattr(inner, "jaxpr", inner), given)
            else:
                words = set(re.findall(r"\w+", str(equation)))
                assert name == "while" or not FACTORIZATIONS & words, name
                outputs = [waits] * len(equation.outvars)
            env |= dict(zip(equation.outvars, outputs, strict=True))
        return [look(atom) for atom in jaxpr.outvars]


def order_of(jaxpr) -> Order:
    result = Order()
    result.run(jaxpr, [frozenset()] * len(jaxpr.invars))
    return result


def order(function, *args) -> Order:
    return order_of(jax.make_jaxpr(function)(*args).jaxpr)


def loss(x, theta):
    return jnp.sum(jnp.sin(theta["w"] @ x) + theta["b"] * x[:2])


PROBLEM = {"w": jnp.array([[1.0, 2.0, 0.5], [0.3, -1.0, 1.0]]), "b": jnp.ones(2)}, jnp.ones(3)


@pytest.mark.parametrize("norm", ["l1", "l2", "linf"])
@pytest.mark.parametrize("function", [theory.attack_jacobian, theory.adversarial_hessian])
def test_factorizations_come_one_after_another(norm, function, x64):
    theta, x = PROBLEM
    run = lambda theta, x: function(loss, theta, x, norm=norm, eps=0.1, x_adv=x)
    found = order(run, theta, x)
    assert len(found.names) == {theory.attack_jacobian: 7, theory.adversarial_hessian: 2}[function]
    assert not found.apart


def test_so_do_those_of_a_differentiated_attack(x64):
    theta, x = PROBLEM
    attack = theory.differentiable_attack(loss, norm="l2", eps=0.1, num_restarts=1)
    found = order(jax.jacfwd(attack), theta, x)
    assert found.names == ["while", "eigh", "lu"]
    assert not found.apart


def test_factorizations_that_do_not_wait_are_found():
    matrix = jnp.eye(3)
    apart = lambda m: (jnp.linalg.eigh(m), jnp.linalg.qr(m + 1))
    assert order(apart, matrix).apart == [("eigh", "qr")]

    def together(m):
        values, _ = jnp.linalg.eigh(m)
        return values, jnp.linalg.qr(after(values[0], m + 1))

    assert not order(together, matrix).apart


def test_waiting_changes_nothing():
    matrix = jnp.array([[1.0, jnp.inf], [jnp.nan, -0.0]])
    for done in (0.0, jnp.inf, -3.0):
        kept = after(jnp.asarray(done), matrix)
        assert (jnp.isnan(kept) == jnp.isnan(matrix)).all()
        assert (jnp.signbit(kept) == jnp.signbit(matrix)).all()
    assert jnp.isnan(after(jnp.asarray(jnp.nan), matrix)).all()
