r"""The Jacobian of the optimal attack by the implicit function theorem, with its certificates.

At a regular KKT point the attack moves with the parameters, :math:`D = dx'/d\theta`, and the
adversarial loss has the Hessian :math:`A + B^T D`. D comes from the derivatives of the KKT
system of the case at hand; with T a basis of the tangent space of the active constraints it equals
:math:`-T (T^T W T)^{-1} T^T B`.

References:
    docs/formulas.md C.1, C.2, C.4; Kanai et al., Lemmas 4 and 5; errata E1, E8, E10, E11.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from ...checks import check_count, is_concrete
from ...types import Array, Key, Norm, PyTree
from .._float64 import in_float64
from .certificates import Analysis, Certificates, analyse, is_regular, kind_name
from .feasible import Bounds
from .implicit import dense_solve, implicit_motion
from .kkt import kkt_residual, normalized_multiplier
from .lapack import after
from .optimal import search
from .problem import Problem, ScalarLoss, make_problem


class AttackJacobian(NamedTuple):
    """The Jacobian of the optimal attack, with its certificates.

    Attributes:
        x_adv: the attack x', shaped like x.
        value: its loss.
        kind_code: index into ("interior", "sphere", "vertex", "face", "degenerate",
            "unconverged"); `kind` is the name.
        jacobian: D, a pytree like theta, each leaf with the shape of x in front; NaN where the
            kind is "degenerate" or "unconverged".
        multiplier_jacobian: d mu / d theta, a pytree like theta; NaN in the same cases.
        norm: the spectral norm of D, measured.
        sharp_bound: norm(T^T B)/c_T (with H_FF instead of W_T on faces): never below ``norm``, and
            never above the paper's; 0 at a vertex.
        paper_bound: norm(B)/lambda_min(-H) of Lemma 4 (interior) or norm(B)/sigma_min(K) of Lemma 5
            (L2 sphere); inf if the paper has no bound (Linf, L1, or with the box active).
        paper_applies: whether the hypotheses of that lemma hold as printed; Lemma 5 requires det K
        > 0, which no strict maximizer in odd dimension satisfies (erratum E1).
        bordered_det_sign: sign of det K, the bordered Hessian; 0 if undefined.
        bordered_sigma: its smallest singular value, the c of Lemma 5, never above 1 (E11).
        certificates: see `Certificates`.
        value_gap: see `OptimalAttack`; inf if x_adv was given.
    """

    x_adv: Array
    value: Array
    kind_code: Array
    jacobian: PyTree
    multiplier_jacobian: PyTree
    norm: Array
    sharp_bound: Array
    paper_bound: Array
    paper_applies: Array
    bordered_det_sign: Array
    bordered_sigma: Array
    certificates: Certificates
    value_gap: Array

    @property
    def kind(self) -> Any:
        """Name of the kind, or an array of names for a batch."""
        return kind_name(self.kind_code)


class AdversarialHessian(NamedTuple):
    """Hessian of the adversarial loss in the raveled parameters; NaN where it does not exist.

    Attributes:
        total: A + B^T D, (m, m).
        frozen: A, the Hessian with the attack frozen.
        motion: B^T D, positive semidefinite: the contribution of attack motion.
        kind_code: see `AttackJacobian`.
    """

    total: Array
    frozen: Array
    motion: Array
    kind_code: Array

    @property
    def kind(self) -> Any:
        """Name of the kind, or an array of names for a batch."""
        return kind_name(self.kind_code)


def _spectral_norm(matrix: Array) -> Array:
    """Largest singular value; through the small Gram matrix, scaled so that nothing underflows."""
    largest = jnp.max(jnp.abs(matrix), initial=0.0)
    largest = jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1.0)
    scaled = matrix / largest
    gram = scaled @ scaled.T if matrix.shape[0] <= matrix.shape[1] else scaled.T @ scaled
    gram = jnp.where(jnp.isfinite(gram), gram, 0.0)
    top = jnp.linalg.eigvalsh(gram)[-1]
    return jnp.where(
        jnp.all(jnp.isfinite(matrix)), largest * jnp.sqrt(jnp.maximum(top, 0.0)), jnp.nan
    )


def _implicit_jacobian(
    loss: ScalarLoss, problem: Problem, z: Array, found: Analysis, done: Array
) -> tuple[Array, Array, Array]:
    """(D, dnu/dtheta, B) in ravelled parameters, from the KKT system; solved after ``done``."""
    flat, unravel = ravel_pytree(problem.theta)
    active, scale = found.active, found.scale

    def system(unknowns: Array, flat: Array) -> Array:
        return kkt_residual(loss, unknowns, unravel(flat), problem.feasible, active, scale)

    root = jnp.append(z, normalized_multiplier(active, scale))
    # A row of this matrix costs a reverse pass, a column a forward pass; d is the small dimension.
    push = jax.jacrev(system, argnums=1)(root, flat)
    solution = implicit_motion(lambda u: system(u, flat), root, push, dense_solve(done))
    mixed = jax.jacrev(lambda flat: jax.grad(loss)(z, unravel(flat)))(flat)
    return solution[:-1], solution[-1], mixed


def _bordered(found: Analysis) -> tuple[Array, Array]:
    """Sign of det K and smallest singular value of the paper's bordered Hessian (eq. 22)."""
    n = found.active.normal
    size = n.shape[0]
    w = found.hessian - found.active.pull * (jnp.eye(size) - n[:, None] * n[None, :])
    bordered = jnp.block([[jnp.zeros((1, 1)), n[None, :]], [n[:, None], w]])
    bordered = after(found.certificates.curvature, bordered)
    safe = jnp.where(jnp.all(jnp.isfinite(bordered)), bordered, 0.0)
    sign = jnp.linalg.slogdet(safe)[0]
    return sign, jnp.linalg.svd(after(sign, safe), compute_uv=False)[-1]


@jax.jit(static_argnames=("shape",))
def _differentiate(
    problem: Problem, z: Array, value_gap: Array, tol: float | Array, *, shape: tuple[int, ...]
) -> AttackJacobian:
    loss, theta = problem.flat_loss(shape), problem.theta
    found = analyse(loss, theta, problem.feasible, z, tol)
    sign, sigma = _bordered(found)
    jacobian, nu_jacobian, mixed = _implicit_jacobian(loss, problem, z, found, sigma)
    regular = is_regular(found.kind_code)
    still = found.certificates.tangent_dim == 0  # D = 0, not the rounding of a linear solve
    jacobian = jnp.where(regular, jnp.where(still, 0.0, jacobian), jnp.nan)
    nu_jacobian = jnp.where(regular, nu_jacobian * found.scale, jnp.nan)

    certificates, active = found.certificates, found.active
    norm = _spectral_norm(jacobian)
    tangential = _spectral_norm(after(norm, active.projector @ mixed))
    sharp = jnp.where(certificates.tangent_dim > 0, tangential / certificates.curvature, 0.0)
    on_sphere = active.on_ball & ~jnp.any(active.fixed) & (problem.feasible.norm == "l2")
    inside = ~active.on_ball & ~jnp.any(active.fixed)
    constant = jnp.where(on_sphere, sigma, jnp.where(inside, certificates.curvature, 0.0))
    bounded = regular & (constant > 0)
    safe = jnp.where(bounded, constant, 1.0)
    paper = jnp.where(bounded, _spectral_norm(after(tangential, mixed)) / safe, jnp.inf)
    unravel = ravel_pytree(theta)[1]
    rows = jax.vmap(unravel)(jacobian)
    return AttackJacobian(
        x_adv=z.reshape(shape),
        value=found.value,
        kind_code=found.kind_code,
        jacobian=jax.tree.map(lambda leaf: leaf.reshape(shape + leaf.shape[1:]), rows),
        multiplier_jacobian=unravel(nu_jacobian),
        norm=norm,
        sharp_bound=jnp.where(regular, sharp, jnp.inf),
        paper_bound=paper,
        paper_applies=regular & (inside | (on_sphere & (sign > 0))),
        bordered_det_sign=jnp.where(on_sphere, sign, 0.0),
        bordered_sigma=jnp.where(on_sphere, sigma, 0.0),
        certificates=certificates,
        value_gap=value_gap,
    )


@jax.jit(static_argnames=("shape",))
def _hessians(
    problem: Problem, z: Array, tol: float | Array, *, shape: tuple[int, ...]
) -> AdversarialHessian:
    loss, theta = problem.flat_loss(shape), problem.theta
    found = analyse(loss, theta, problem.feasible, z, tol)
    curvature = found.certificates.curvature
    jacobian, _, mixed = _implicit_jacobian(loss, problem, z, found, curvature)
    flat, unravel = ravel_pytree(theta)
    frozen = jax.hessian(lambda flat: loss(z, unravel(flat)))(flat)
    motion = jnp.where(is_regular(found.kind_code), mixed.T @ jacobian, jnp.nan)
    return AdversarialHessian(frozen + motion, frozen, motion, found.kind_code)


_search = jax.jit(search, static_argnames=("shape", "num_restarts"))


def _candidate(
    loss: ScalarLoss,
    theta: PyTree,
    x: Array,
    norm: Norm,
    eps: float | Array,
    bounds: Bounds,
    x_adv: Array | None,
    key: Key | None,
    num_restarts: int,
) -> tuple[Problem, Array, Array]:
    """The problem, its attack (given or found) and the gap to the second best."""
    check_count("num_restarts", num_restarts, 0)
    problem = make_problem(loss, theta, x, norm=norm, eps=eps, bounds=bounds)
    if x_adv is None:
        key = jax.random.key(0) if key is None else key
        return problem, *_search(key, problem, shape=jnp.shape(x), num_restarts=num_restarts)
    if jnp.shape(x_adv) != jnp.shape(x):
        raise ValueError(f"x_adv has shape {jnp.shape(x_adv)}, x has {jnp.shape(x)}; pass one of x")
    z = jnp.asarray(x_adv, float).reshape(-1)
    if is_concrete(z) and not bool(jnp.all(jnp.isfinite(z))):
        raise ValueError("x_adv contains values that are not finite; pass a feasible point")
    return problem, z, jnp.asarray(jnp.inf)


@in_float64
def attack_jacobian(
    loss: ScalarLoss,
    theta: PyTree,
    x: Array,
    *,
    norm: Norm,
    eps: float | Array,
    bounds: Bounds = None,
    x_adv: Array | None = None,
    key: Key | None = None,
    num_restarts: int = 8,
    tol: float = 1e-9,
) -> AttackJacobian:
    r"""Jacobian :math:`D = dx'/d\theta` of the optimal attack, dense, with its certificates.

    The implicit function theorem on the KKT system of the active set:

    * interior, :math:`g = 0`: :math:`D = -H^{-1}B`;
    * L2 sphere, :math:`g = \mu n`: :math:`D = -T(T^TWT)^{-1}T^TB`, :math:`W = H - (\mu/\epsilon)P`;
    * Linf, or the box: coordinates on a bound do not move, the others have
      :math:`D_F = -H_{FF}^{-1}B_F`; at a vertex D = 0;
    * L2 and box: the sphere within the free coordinates; L1: likewise the face of the ball.

    Where the second-order condition, strict complementarity or twice differentiability fails, the
    kind is "degenerate"; where x' is not a KKT point, it is "unconverged". In both cases the attack
    has no derivative, and D is NaN. Works under ``jax.jit`` and ``jax.vmap`` within
    ``jax.enable_x64(True)``; compilations are shared as in `optimal_attack`.

    Args:
        loss: function of (x, theta) to a scalar, one example, twice differentiable near x'.
        theta: parameters, any pytree of real arrays.
        x: clean example of any shape.
        norm: "linf", "l2" or "l1".
        eps: radius >= 0, in the units of x.
        bounds: None, or (low, high), numbers or arrays like x: the box, which contains x.
        x_adv: the attack to differentiate, used as is (`polish_attack` refines one); by default
        found by `optimal_attack`.
        key: typed key of that search, by default ``jax.random.key(0)``.
        num_restarts: random starts of that search.
        tol: largest relative residual that counts as converged.

    Returns:
        An `AttackJacobian`.

    Raises:
        ValueError: see `optimal_attack`; also if x_adv has a different shape than x or is not
        finite.

    Example:
        >>> import jax.numpy as jnp
        >>> loss = lambda x, theta: -0.5 * jnp.sum((x - theta) ** 2)
        >>> result = attack_jacobian(loss, jnp.array([0.0, 2.0]), jnp.zeros(2), norm="l2", eps=1.0)
        >>> result.kind, (result.jacobian.round(6) + 0.0).tolist(), round(float(result.norm), 6)
        ('sphere', [[0.5, 0.0], [0.0, 0.0]], 0.5)

    References:
        formulas C.1, C.2, C.4; Kanai et al., Lemmas 4 and 5.
    """
    problem, z, value_gap = _candidate(loss, theta, x, norm, eps, bounds, x_adv, key, num_restarts)
    return _differentiate(problem, z, value_gap, tol, shape=jnp.shape(x))


@in_float64
def adversarial_hessian(
    loss: ScalarLoss,
    theta: PyTree,
    x: Array,
    *,
    norm: Norm,
    eps: float | Array,
    bounds: Bounds = None,
    x_adv: Array | None = None,
    key: Key | None = None,
    num_restarts: int = 8,
    tol: float = 1e-9,
) -> AdversarialHessian:
    r"""Hessian :math:`A + B^T D` of the adversarial loss, dense, and its two parts.

    Differentiating twice with the attack frozen gives only the first part; the second, positive
    semidefinite, comes from the motion of the attack.

    For arguments, see `attack_jacobian`; rows follow ``ravel_pytree(theta)``.

    Returns:
        An `AdversarialHessian`.

    Raises:
        ValueError: see `attack_jacobian`.

    Example:
        >>> import jax.numpy as jnp
        >>> loss = lambda x, theta: -0.5 * jnp.sum((x - theta) ** 2)
        >>> result = adversarial_hessian(
        ...     loss, jnp.array([0.5, 0.5]), jnp.zeros(2), norm="linf", eps=1.0
        ... )
        >>> (result.total + 0.0).tolist(), result.kind
        ([[0.0, 0.0], [0.0, 0.0]], 'interior')

    References:
        formulas A.9 (F3), C.1, C.2, C.4.
    """
    problem, z, _ = _candidate(loss, theta, x, norm, eps, bounds, x_adv, key, num_restarts)
    return _hessians(problem, z, tol, shape=jnp.shape(x))
