r"""Adversarial weight perturbation (AWP): the gradient at the worst weights near the current ones.

.. math::
    v_l = \gamma_A \|\theta_l\|\, \frac{g_l}{\|g_l\|}, \quad g = \nabla_\theta L(\theta), \qquad
    \text{gradient used} = \nabla_\theta L(\theta + v)

for every kernel :math:`\theta_l` (Frobenius norms of whole tensors); biases and BatchNorm's scales
and shifts are unchanged. It transforms ``value_and_grad`` rather than the optimizer, so it works
with any optax optimizer and in the inner loop of EntropySGD.
"""

import numbers
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from .._devices import averaged
from ..checks import is_concrete
from ..types import Array, Params, PyTree
from ._masks import check_floating, check_like, expand_mask
from ._moments import accumulator_dtype


def kernels(params: Params) -> PyTree:
    """The default mask of `awp_value_and_grad`: True for leaves of more than one dimension.

    In the models of this package these are the convolution and linear kernels; everything else
    (biases, BatchNorm) is a vector.

    Example:
        >>> kernels({"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)})
        {'bias': False, 'kernel': True}
    """
    return jax.tree.map(lambda leaf: jnp.ndim(leaf) > 1, params)


def awp_perturbation(
    params: Params, grads: PyTree, gamma: ArrayLike, *, mask: PyTree | Callable = kernels
) -> PyTree:
    r"""The perturbation :math:`v_l = \gamma_A \|\theta_l\| g_l/\|g_l\|`; 0 where :math:`g_l = 0`.

    Args:
        params: :math:`\theta`, any pytree.
        grads: :math:`g`, shaped like ``params``.
        gamma: :math:`\gamma_A`.
        mask: which leaves are perturbed: a pytree of Booleans shaped like ``params``, where one
            Boolean may cover a whole layer (``{"body": False, "head": True}``, or ``True`` for
            everything), or a function of ``params`` that returns one.

    Returns:
        v, with the shapes and dtypes of ``params``, zero where the mask is False.

    Raises:
        ValueError: a mask entry is not a Boolean or matches nothing, or a leaf has none.

    Example:
        >>> v = awp_perturbation(jnp.full((1, 4), 2.0), jnp.array([[0.0, 3.0, 0.0, 4.0]]), 0.5)
        >>> v.round(3).tolist()  # of norm 0.5 * 4
        [[0.0, 1.2000000476837158, 0.0, 1.600000023841858]]
    """
    check_like("grads", grads, params)
    return _masked_perturbation(params, grads, gamma, expand_mask(mask, params))


def _masked_perturbation(params: Params, grads: PyTree, gamma: ArrayLike, mask: PyTree) -> PyTree:
    return jax.tree.map(
        lambda use, p, g: _perturbation(p, g, gamma) if use else jnp.zeros_like(p),
        mask,
        params,
        grads,
    )


def awp_value_and_grad(
    loss_fn: Callable,
    gamma: ArrayLike,
    *,
    has_aux: bool = False,
    mask: PyTree | Callable = kernels,
    weight_decay: ArrayLike = 0.0,
    axis_name: str | None = None,
) -> Callable:
    r"""``jax.value_and_grad(loss_fn)`` at adversarially perturbed weights.

    .. math:: L(\theta + v), \quad \nabla L(\theta + v) + \lambda v, \qquad
        v_l = \gamma_A \|\theta_l\|\, \nabla_l L(\theta) / \|\nabla_l L(\theta)\|

    A single ascent step, with the same arguments (the same adversarial images) in both passes.
    Value and auxiliary output come from the second pass: BatchNorm's running statistics are those
    of the forward pass at :math:`\theta + v`, and the first pass's are discarded, as in the
    reference code. The reference takes the ascent step on a copy of the model with its own learning
    rate, which the normalization cancels, so none is needed here.

    Weight decay. The reference adds v to the weights before the optimizer step and subtracts it
    afterward, so weight decay acts on :math:`\theta + v`. With ``weight_decay`` equal to the
    :math:`\lambda` of the optimizer that follows, :math:`\lambda v` is added to the gradient and
    the two agree for SGD, whose decay is part of the gradient. The default leaves the decay at
    :math:`\theta`; keep it for optimizers that decouple the decay from the gradient, such as
    ``optax.adamw`` and ``optax.lion``, which would rescale :math:`\lambda v`.

    Args:
        loss_fn: ``(params, *args, **kwargs) -> loss``, or ``(loss, aux)`` with ``has_aux``.
        gamma: :math:`\gamma_A >= 0`, the size of the perturbation relative to each kernel; may be
        traced. With 0 this is ``jax.value_and_grad``: the first pass is omitted if gamma is a
        Python number, and skipped at run time if it is traced (warm-up).
        has_aux: as in ``jax.value_and_grad``.
        mask: which leaves are perturbed, by default those of more than one dimension; see
            `awp_perturbation`.
        weight_decay: :math:`\lambda` of the SGD that follows, for decay at :math:`\theta + v`.
        axis_name: a mapped axis (``jax.shard_map``), each of whose devices has the loss of its own
            images: v is then that of the mean gradient, and the same on all. The value and the
            gradient returned are the device's own, to be averaged by the caller.

    Returns:
        A function with the arguments of ``loss_fn`` and the results of ``jax.value_and_grad``. A
        kernel with zero gradient is not perturbed.

    Raises:
        ValueError: gamma or weight_decay is negative or not finite; the mask does not match the
        parameters, or a parameter is not floating-point.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from jaxadv import optim
        >>> loss_fn = lambda params, x: jnp.sum((params["kernel"] @ x + params["bias"]) ** 2)
        >>> params = {"kernel": jnp.ones((2, 2)), "bias": jnp.zeros(2)}
        >>> value, grads = optim.awp_value_and_grad(loss_fn, 0.5)(params, jnp.ones(2))
        >>> float(value)  # the plain loss is 8; the kernel has grown from 1 to 1.5
        18.0
        >>> updates, _ = optax.sgd(0.1).update(grads, optax.sgd(0.1).init(params))

    References:
        Wu et al., "Adversarial weight perturbation helps robust generalization", 2020, and its
        code; Kanai et al. (arXiv 2103.01400), Algorithm 1 line 9 (which states the perturbation's
        constraint as an equality, like the code).
    """
    _check("gamma", gamma, "0 disables the perturbation")
    _check("weight_decay", weight_decay, "0 leaves the decay to the optimizer")
    plain = jax.value_and_grad(loss_fn, has_aux=has_aux)
    if isinstance(gamma, numbers.Real) and gamma == 0:
        return plain

    def value_and_grad(params: Params, *args: Any, **kwargs: Any) -> tuple[Any, Params]:
        check_floating(params, "AWP perturbs and differentiates", "close over it instead")
        chosen = expand_mask(mask, params)

        def perturbation() -> Params:
            grads = jax.grad(loss_fn, has_aux=has_aux)(params, *args, **kwargs)
            grads = grads[0] if has_aux else grads
            grads = grads if axis_name is None else averaged(grads, axis_name)
            return _masked_perturbation(params, grads, gamma, chosen)

        def nothing() -> Params:
            return jax.tree.map(jnp.zeros_like, params)

        params = jax.tree.map(jnp.asarray, params)
        if isinstance(gamma, numbers.Real):
            v = perturbation()
        else:
            v = jax.lax.cond(jnp.asarray(gamma) > 0, perturbation, nothing)
        value, grads = plain(jax.tree.map(jnp.add, params, v), *args, **kwargs)
        if not (isinstance(weight_decay, numbers.Real) and weight_decay == 0):
            grads = jax.tree.map(lambda g, d: (g + weight_decay * d).astype(g.dtype), grads, v)
        return value, grads

    return value_and_grad


def _perturbation(param: Array, grad: Array, gamma: ArrayLike) -> Array:
    dtype = accumulator_dtype(param)
    direction = jnp.asarray(grad).astype(dtype)
    # Scale before squaring: the square of a gradient of 1e-23 would be 0 in float32.
    largest = jnp.max(jnp.abs(direction), initial=0.0)
    direction = direction / jnp.where(largest > 0, largest, 1)
    size = jnp.sqrt(jnp.sum(direction**2))
    unit = direction / jnp.where(size > 0, size, 1)
    norm = jnp.sqrt(jnp.sum(jnp.asarray(param).astype(dtype) ** 2))
    return jnp.asarray(gamma * norm * unit, param.dtype)


def _check(name: str, value: ArrayLike, zero: str) -> None:
    if is_concrete(value) and not 0 <= float(value) < float("inf"):  # pyright: ignore
        raise ValueError(f"{name}={value} must be a finite number >= 0; {zero}")
