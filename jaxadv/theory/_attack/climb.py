"""Refining an attack on a model of any size: ascent, then Newton by conjugate gradients."""

import jax
import jax.numpy as jnp

from ..._transfers import on_host
from ...checks import check_count
from ...types import Array, Norm, PyTree
from .active import TOUCHES, active_set
from .certificates import relative_residual
from .feasible import Bounds, l2_norm
from .implicit import conjugate_solve, implicit_motion, tangent_residual
from .problem import Problem, ScalarLoss, make_problem
from .stages import candidates, choose, climb


def _newton(
    problem: Problem, shape: tuple[int, ...], z: Array, max_steps: int, cg_steps: int
) -> Array:
    feasible, flat_loss = problem.feasible, problem.flat_loss(shape)
    loss = lambda z: flat_loss(z, problem.theta)
    slope = jax.value_and_grad(loss)
    precision = float(jnp.finfo(z.dtype).eps)
    touches = max(TOUCHES, 1e-4 if precision > 1e-10 else 0.0)

    def going(state: tuple) -> Array:
        _, _, _, stalled, count = state
        return ~stalled & (count < max_steps)

    def body(state: tuple) -> tuple:
        z, value, g, _, count = state
        active = active_set(feasible, z, g, touches)
        residual_fn = tangent_residual(jax.grad(loss), active.project, active.pull, z)
        target = active.project(g)
        # Newton's step, toward a zero of the gradient along the constraints.
        # Negative curvature stops the solver with an ascent direction, as in Steihaug's method.
        found = implicit_motion(residual_fn, z, target, conjugate_solve(1e-2, cg_steps))
        length = l2_norm(target)
        curved = -jax.jvp(residual_fn, (z,), (target,))[1]
        curvature = target @ curved / jnp.where(length > 0, length, 1.0) ** 2
        scale = l2_norm(g) + feasible.eps * jnp.abs(curvature)
        scale = jnp.where(scale > 0, scale, 1.0)
        residual = relative_residual(feasible, z, g, scale)
        points = candidates(feasible, active, z, g, active.project(found.solution), scale)
        values, slopes = jax.vmap(slope)(points)
        residuals = jax.vmap(lambda z, g: relative_residual(feasible, z, g, scale))(points, slopes)
        noise = 10 * precision * (jnp.abs(value) + scale * feasible.eps)
        best, good = choose(residual, value, residuals, values, noise)
        z, value, g = (
            jnp.where(good, new[best], old)
            for new, old in ((points, z), (values, value), (slopes, g))
        )
        return z, value, g, ~good, count + 1

    value, g = slope(z)
    start = (z, value, g, jnp.array(False), jnp.array(0))
    return jax.lax.while_loop(going, body, start)[0]


@jax.jit(static_argnames=("shape", "ascent_steps", "newton_steps", "cg_steps"))
def _run(
    problem: Problem,
    x_adv: Array,
    *,
    shape: tuple[int, ...],
    ascent_steps: int,
    newton_steps: int,
    cg_steps: int,
) -> Array:
    flat_loss, feasible = problem.flat_loss(shape), problem.feasible
    z = feasible.project(x_adv.reshape(-1))
    if ascent_steps:
        z = climb(lambda z: flat_loss(z, problem.theta), feasible, z, ascent_steps)
    if newton_steps:
        z = _newton(problem, shape, z, newton_steps, cg_steps)
    return z.reshape(shape)


@on_host
def climb_attack(
    loss: ScalarLoss,
    theta: PyTree,
    x: Array,
    x_adv: Array,
    *,
    norm: Norm,
    eps: float | Array,
    bounds: Bounds = None,
    ascent_steps: int = 100,
    newton_steps: int = 20,
    cg_steps: int = 50,
) -> Array:
    r"""Refines an attack (for example from PGD) toward a KKT point, for models of any size.

    Runs monotone projected-gradient ascent, then Newton steps on the tangent space of the active
    constraints by truncated conjugate gradients, in the dtype of the inputs. On piecewise linear
    networks it stops at a kink; `matrix_free_jacobian` says how close that is to a KKT point.

    Args:
        loss: function of (x, theta) to a scalar, one example.
        theta: parameters, any pytree of real arrays.
        x: clean example of any shape.
        x_adv: where to start, same shape; projected into the ball and the box first.
        norm: "linf", "l2" or "l1".
        eps: radius >= 0, in the units of x.
        bounds: None, or (low, high), numbers or arrays like x.
        ascent_steps: maximum number of ascent steps.
        newton_steps: maximum number of Newton steps.
        cg_steps: maximum number of Hessian products in each.

    Returns:
        The refined attack, whose loss is at least that of the projected x_adv.

    Raises:
        ValueError: see `optimal_attack`.

    Example:
        >>> import jax.numpy as jnp
        >>> loss = lambda x, theta: -jnp.sum((x - theta) ** 2)
        >>> theta, x, start = jnp.array([3.0, 4.0]), jnp.zeros(2), jnp.array([1.0, 0.0])
        >>> x_adv = climb_attack(loss, theta, x, start, norm="l2", eps=1.0)
        >>> [round(float(v), 4) for v in x_adv]
        [0.6, 0.8]

    References:
        docs/formulas.md C.5, stages 2 and 3; Steihaug 1983.
    """
    check_count("ascent_steps", ascent_steps, 0)
    check_count("newton_steps", newton_steps, 0)
    check_count("cg_steps", cg_steps, 1)
    theta = jax.tree.map(jnp.asarray, theta)
    x, x_adv = jnp.asarray(x), jnp.asarray(x_adv)
    if x_adv.shape != x.shape:
        raise ValueError(f"x_adv has shape {x_adv.shape}, x has {x.shape}; pass an attack on x")
    problem = make_problem(loss, theta, x, norm=norm, eps=eps, bounds=bounds)
    return _run(
        problem, x_adv, shape=x.shape, ascent_steps=ascent_steps, newton_steps=newton_steps,
        cg_steps=cg_steps,
    )  # fmt: skip
