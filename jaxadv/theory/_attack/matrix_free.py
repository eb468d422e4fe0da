r"""`attack_jacobian` for networks: matrix-free, in the dtype of the inputs.

The quantities of `attack_jacobian` for a model of any size and any parameter pytree, from products
with H, B, B^T, A and conjugate gradients; norms by Lanczos with error estimates. A PreActResNet-18
of width 16 on a 32x32x3 image takes seconds in float32 once it is compiled; losses that differ only
in the arrays they close over (weights, labels) share the compilation.

References:
    docs/formulas.md C.6, I.1, I.2, I.7.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from ..._transfers import on_host
from ...checks import check_count
from ...types import Array, Norm, PyTree
from .._krylov import Estimate, Extremes, lanczos, square_root
from . import operators as products
from .active import TOUCHES, active_set
from .certificates import KINDS, REGULAR, relative_residual
from .feasible import Bounds, l2_norm
from .problem import ScalarLoss, make_problem

_KINKED = 0.1  # smooth losses stay far below; ReLU networks are of order 1


class MatrixFreeJacobian(NamedTuple):
    """The attack Jacobian of one example as products, with its certificates.

    Products and norms of D raise a ``ValueError`` where the kind is "degenerate" or "unconverged".

    Attributes:
        x_adv: the attack x'.
        kind: interior, sphere, vertex, face, degenerate or unconverged.
        value: loss at x'.
        gap: Frank-Wolfe gap.
        residual: norm of Pi(x' + g) - x'.
        relative_residual: dimensionless, see `Certificates`; decides "unconverged".
        multiplier: mu of the ball, see `Certificates`.
        margin: strict complementarity, see `Certificates`.
        slack: see `Certificates`.
        curvature: c_T, the smallest eigenvalue of -W on the tangent space; inf at a vertex.
        tangent_dim: dimension of that space.
        kink: norm of (H v - finite difference of grad_x l) over that of the difference, for one
            random v: 0 for a smooth loss up to rounding, of order 1 for a piecewise linear network.
        caveat: empty, or why differentiating here is questionable (erratum E21).
        point: data for the products.
        tol: relative tolerance of the norms.
        max_steps: maximum number of Lanczos steps.
    """

    x_adv: Array
    kind: str
    value: float
    gap: float
    residual: float
    relative_residual: float
    multiplier: float
    margin: float
    slack: float
    curvature: Estimate
    tangent_dim: int
    kink: float
    caveat: str
    point: products.Point
    tol: float
    max_steps: int

    def _need_regular(self) -> None:
        if self.kind in ("degenerate", "unconverged"):
            raise ValueError(
                f"the attack is {self.kind} (relative residual {self.relative_residual:.3g}, "
                f"margin {self.margin:.3g}, curvature {self.curvature.value:.3g}), so it has no "
                "Jacobian; refine it with climb_attack, or raise tol if it is good enough"
            )

    @on_host
    def input_hessian(self, v: Array) -> Array:
        """H v for v shaped like x."""
        return products.hessian_product(self.point, v)

    @on_host
    def mixed(self, u: PyTree) -> Array:
        """B u for u a pytree like theta."""
        return products.mixed_product(self.point, u)

    @on_host
    def mixed_transpose(self, w: Array) -> PyTree:
        """B^T w for w shaped like x."""
        return products.mixed_transpose_product(self.point, w)

    @on_host
    def jacobian(self, u: PyTree) -> Array:
        """D u: how the attack moves when the parameters move along u."""
        self._need_regular()
        return self._solve(self.mixed(u))

    @on_host
    def jacobian_transpose(self, w: Array) -> PyTree:
        """D^T w."""
        self._need_regular()
        return self.mixed_transpose(self._solve(w))

    @on_host
    def frozen_hessian(self, u: PyTree) -> PyTree:
        """A u, the Hessian of the loss with the attack frozen."""
        return products.frozen_hessian_product(self.point, u)

    @on_host
    def loss_hessian(self, u: PyTree) -> PyTree:
        """(A + B^T D) u, the Hessian of the adversarial loss."""
        frozen = self.frozen_hessian(u)
        return jax.tree.map(jnp.add, frozen, self.mixed_transpose(self.jacobian(u)))

    @on_host
    def motion_hessian(self, u: PyTree) -> PyTree:
        """B^T D u, positive semidefinite: the contribution of attack motion to the Hessian."""
        return self.mixed_transpose(self.jacobian(u))

    def _solve(self, v: Array) -> Array:
        if self.tangent_dim == 0:
            return jnp.zeros_like(v)
        return self._converged_solve(v)

    def _converged_solve(self, v: Array) -> Array:
        """S^{-1} P v by conjugate gradients; raises an error if they do not converge."""
        found = products.solve(self.point, v)
        if bool(found.negative) or float(found.residual) > 10 * self.point.cg_tol:
            raise ValueError(
                f"conjugate gradients stopped at a relative residual of {float(found.residual):.2g}"
                f" after {int(found.iterations)} steps"
                + (" on negative curvature: no strict maximum" if bool(found.negative) else "")
                + "; raise cg_steps or cg_tol"
            )
        return found.solution

    def _random_x(self) -> Array:
        noise = np.random.default_rng(0).normal(size=self.x_adv.shape)
        return jnp.asarray(noise, self.x_adv.dtype)

    def _largest(self, apply: Callable[[Array], Array], start: Array) -> Estimate:
        found = lanczos(apply, start, tol=self.tol, max_steps=self.max_steps, ends="high")
        return square_root(found.high)

    @on_host
    def norm(self) -> Estimate:
        """Norm of D, by Lanczos on D D^T in the space of x."""
        self._need_regular()
        if self.tangent_dim == 0:
            return Estimate(0.0, 0.0, 0, True)
        start = self.point.project(self._random_x())
        return self._largest(lambda w: self.jacobian(self.jacobian_transpose(w)), start)

    @on_host
    def mixed_norm(self, tangential: bool = False) -> Estimate:
        """Norm of B, the local C_thx, or of T^T B."""
        clip = self.point.project if tangential else lambda w: w
        if tangential and self.tangent_dim == 0:
            return Estimate(0.0, 0.0, 0, True)
        apply = lambda w: clip(self.mixed(self.mixed_transpose(w)))
        return self._largest(apply, clip(self._random_x()))

    @on_host
    def sharp_bound(self) -> float:
        """norm(T^T B)/c_T, with both estimates shifted conservatively by their errors."""
        self._need_regular()
        top = self.mixed_norm(tangential=True)
        safe = self.curvature.value - self.curvature.error
        return 0.0 if self.tangent_dim == 0 else (top.value + top.error) / safe

    @on_host
    def bordered_sigma(self) -> Estimate:
        """Smallest singular value of the bordered Hessian K, the c of Lemma 5 (L2 sphere only)."""
        self._need_regular()
        if self.kind != "sphere":
            raise ValueError(f"the bordered Hessian belongs to the L2 sphere, kind={self.kind!r}")
        start = (jnp.ones((), self.x_adv.dtype), self._random_x())
        apply = lambda v: products.inverse_bordered_product(self.point, v)
        ends = lanczos(apply, start, tol=self.tol, max_steps=self.max_steps)
        top = max(ends, key=lambda estimate: abs(estimate.value))
        size = abs(top.value)
        error = top.error / (size * max(size - top.error, 1e-30))
        return Estimate(1 / size, error, top.iterations, top.converged)

    @on_host
    def paper_bound(self) -> float:
        """norm(B)/lambda_min(-H) (Lemma 4) or norm(B)/sigma_min(K) (Lemma 5); inf elsewhere."""
        self._need_regular()
        if self.kind == "interior":
            return self.mixed_norm().value / self.curvature.value
        if self.kind == "sphere":
            return self.mixed_norm().value / self.bordered_sigma().value
        return float("inf")

    @on_host
    def smoothness(self, part: str = "total") -> Extremes:
        """Extreme eigenvalues of A + B^T D, the true local smoothness ("frozen" A, "motion" B^T D).

        Lanczos in the space of theta without storing the basis.
        """
        operators = dict(
            total=self.loss_hessian, frozen=self.frozen_hessian, motion=self.motion_hessian
        )
        if part not in operators:
            raise ValueError(f"part={part!r} is not one of {', '.join(operators)}")
        rng = np.random.default_rng(0)
        start = jax.tree.map(
            lambda leaf: jnp.asarray(rng.normal(size=jnp.shape(leaf)), leaf.dtype), self.point.theta
        )
        apply = operators[part]
        return lanczos(apply, start, tol=self.tol, max_steps=self.max_steps, reorthogonalize=False)


@on_host
def matrix_free_jacobian(
    loss: ScalarLoss,
    theta: PyTree,
    x: Array,
    x_adv: Array,
    *,
    norm: Norm,
    eps: float | Array,
    bounds: Bounds = None,
    tol: float | None = None,
    cg_tol: float | None = None,
    cg_steps: int = 500,
    lanczos_tol: float | None = None,
    lanczos_steps: int = 40,
) -> MatrixFreeJacobian:
    r"""The attack Jacobian of a model of any size, in the dtype of its inputs.

    Args:
        loss: function of (x, theta) to a scalar, one example.
        theta: parameters, any pytree of real arrays.
        x: clean example of any shape.
        x_adv: the attack, same shape; used as is (see `climb_attack`).
        norm: "linf", "l2" or "l1".
        eps: radius >= 0, in the units of x.
        bounds: None, or (low, high), numbers or arrays like x.
        tol: largest relative residual that counts as converged; default 1e-9 in float64, 1e-3 in
            float32.
        cg_tol: relative residual of the linear solves; default 1e-12 in float64, 1e-4 in float32.
        cg_steps: maximum number of their steps.
        lanczos_tol: relative error of the norms; default 1e-10 in float64, 1e-2 in float32.
        lanczos_steps: maximum number of Lanczos steps.

    Returns:
        A `MatrixFreeJacobian`.

    Raises:
        ValueError: see `attack_jacobian`; products with D also if the attack is not regular.

    Example:
        >>> import jax.numpy as jnp
        >>> loss = lambda x, theta: -0.5 * jnp.sum((x - theta) ** 2)
        >>> result = matrix_free_jacobian(
        ...     loss, jnp.array([0.0, 2.0]), jnp.zeros(2), jnp.array([0.0, 1.0]), norm="l2", eps=1.0
        ... )
        >>> result.kind, round(result.norm().value, 4), result.jacobian(jnp.ones(2)).tolist()
        ('sphere', 0.5, [0.5, 0.0])

    References:
        formulas C.6.
    """
    check_count("cg_steps", cg_steps, 1)
    check_count("lanczos_steps", lanczos_steps, 1)
    theta = jax.tree.map(jnp.asarray, theta)
    x, x_adv = jnp.asarray(x), jnp.asarray(x_adv)
    if x_adv.shape != x.shape:
        raise ValueError(f"x_adv has shape {x_adv.shape}, x has {x.shape}; pass an attack on x")
    problem = make_problem(loss, theta, x, norm=norm, eps=eps, bounds=bounds)
    double = x.dtype == jnp.float64
    tol = tol if tol is not None else (1e-9 if double else 1e-3)
    cg_tol = cg_tol if cg_tol is not None else (1e-12 if double else 1e-4)
    lanczos_tol = lanczos_tol if lanczos_tol is not None else (1e-10 if double else 1e-2)
    # Rounding of x + eps moves a coordinate off its bound by this fraction of eps.
    touches = max(TOUCHES, 1e-4 if not double else 0.0)
    value, g = _value_and_gradient(problem.loss, theta, x_adv)
    feasible, z, flat = problem.feasible, x_adv.reshape(-1), g.reshape(-1)
    active = active_set(feasible, z, flat, touches)
    point = products.Point(problem.loss, theta, x_adv, active, float(cg_tol), int(cg_steps))

    dim = int(active.tangent_dim)
    noise = np.random.default_rng(1).normal(size=x.shape)
    probe = jnp.asarray(noise / np.linalg.norm(noise), x.dtype)
    curved = products.hessian_product(point, probe)
    curvature = Estimate(float("inf"), 0.0, 0, True)
    steepness = float(l2_norm(curved.reshape(-1)))
    if dim > 0:
        ends = lanczos(
            lambda v: products.tangent_product(point, v), point.project(probe),
            tol=lanczos_tol, max_steps=max(lanczos_steps, 3), ends="low", project=point.project,
        )  # fmt: skip
        curvature = ends.low
        pull = float(active.pull)
        steepness = max(steepness, abs(ends.low.value - pull), abs(ends.high.value - pull))
    radius = float(feasible.eps)
    scale = float(l2_norm(flat)) + radius * steepness
    scale = scale if scale > 0 else 1.0
    relative = float(relative_residual(feasible, z, flat, jnp.asarray(scale, x.dtype)))
    kink = _kink(problem.loss, theta, x_adv, probe, curved, radius, double)
    margin, slack = float(active.margin), float(active.slack)
    threshold = REGULAR if double else 1e-4
    regular = (
        margin > threshold * scale
        and slack > threshold * radius * (radius > 0)
        and (curvature.value - curvature.error) * (radius or 1.0) > threshold * scale
    )
    fixed, on_ball = bool(active.fixed.any()), bool(active.on_ball)
    if not relative <= tol:
        kind = "unconverged"
    elif not regular:
        kind = "degenerate"
    elif dim == 0:
        kind = "vertex"
    elif fixed or (on_ball and norm == "l1"):
        kind = "face"
    else:
        kind = "sphere" if on_ball else "interior"
    assert kind in KINDS
    caveat = ""
    if not kink < _KINKED:
        caveat = (
            "the input gradient is not differentiable on the scale of the attack (ReLU?): the "
            "products describe one linear piece of the network, not its neighborhood (E21)"
        )
    return MatrixFreeJacobian(
        x_adv=x_adv, kind=kind, value=float(value), gap=float(feasible.gap(z, flat)),
        residual=float(feasible.residual(z, flat)), relative_residual=relative,
        multiplier=float(active.multiplier), margin=margin, slack=slack, curvature=curvature,
        tangent_dim=dim, kink=kink, caveat=caveat, point=point, tol=float(lanczos_tol),
        max_steps=lanczos_steps,
    )  # fmt: skip


@jax.jit
def _value_and_gradient(loss: Partial, theta: PyTree, x: Array) -> tuple[Array, Array]:
    """The loss and its gradient in x."""
    return jax.value_and_grad(loss)(x, theta)


def _kink(
    loss: Partial, theta: PyTree, x: Array, v: Array, curved: Array, radius: float, double: bool
) -> float:
    """Compares H v with a finite difference of the gradient over a step the size of the ball."""
    step = (1e-4 if double else 1e-2) * (radius if radius > 0 else 1.0)
    ends = [_value_and_gradient(loss, theta, x + s * step * v)[1] for s in (1, -1)]
    difference = (ends[0] - ends[1]) / (2 * step)
    # Rounding of the gradient, divided by the step, shows in the difference.
    rounding = float(jnp.finfo(x.dtype).eps) * float(l2_norm(ends[0].reshape(-1))) / step
    size = float(l2_norm(difference.reshape(-1)))
    mismatch = float(l2_norm((difference - curved).reshape(-1)))
    return max(mismatch - 10 * rounding, 0.0) / size if size > 0 else 0.0
