r"""Weight-loss landscapes along filter-normalized directions; attacks recomputed at each point.

.. math:: \alpha \mapsto L_\epsilon(\theta + \alpha d), \qquad
    d_f \leftarrow d_f \frac{\|\theta_f\|}{\|d_f\|} \text{ for every filter } f

This is the adversarial loss itself: reusing the attacks crafted at theta would underestimate it
everywhere else.

References:
    docs/formulas.md H.1; Li et al., "Visualizing the loss landscape of neural nets", 2018; Kanai et
    al. (arXiv 2103.01400), Figure 7.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from ... import losses
from ..._program import trace
from ..._transfers import on_host
from ...attacks import pgd_stateful
from ...checks import check_count, check_eps, check_images, check_labels, check_norm, check_step
from ...keys import as_key
from ...types import Array, ArrayLike, Key, LossFn, Norm, Params, PyTree
from .._trees import as_arrays, check_same_structure, precision_of

ApplyFn = Callable[[Params, Array], Array]  # parameters, images (B, H, W, C) -> logits (B, K)


@on_host
def filter_normalized_direction(key: Key, params: Params, *, ignore_vectors: bool = True) -> Params:
    """A random direction in which every filter has the norm of the corresponding parameter filter.

    A filter is a slice along the last axis, the output axis of Flax's kernels: (h, w, in, out) of a
    convolution and (in, out) of a dense layer.

    Args:
        key: typed PRNG key; leaf i draws from ``fold_in(key, i)``.
        params: the parameters, any pytree.
        ignore_vectors: biases, BatchNorm's scales and shifts (at most one dimension) do not move,
            the convention for plots; otherwise their direction is the parameter itself.

    Returns:
        The direction, like ``params``.

    Example:
        >>> params = {"kernel": jnp.array([[3.0, 0.0], [4.0, 1.0]]), "bias": jnp.ones(2)}
        >>> direction = filter_normalized_direction(jax.random.key(0), params)
        >>> jnp.linalg.norm(direction["kernel"], axis=0).round(4).tolist(), direction["bias"].sum()
        ([5.0, 1.0], Array(0., dtype=float32))

    References:
        formulas H.1.
    """
    with precision_of(params):
        leaves, treedef = jax.tree.flatten(as_arrays(params))
        directions = []
        for index, leaf in enumerate(leaves):
            if leaf.ndim <= 1:
                directions.append(jnp.zeros_like(leaf) if ignore_vectors else leaf)
                continue
            draw = jax.random.normal(jax.random.fold_in(key, index), leaf.shape, leaf.dtype)
            axes = tuple(range(leaf.ndim - 1))
            norm_of = lambda x, axes=axes: jnp.sqrt(jnp.sum(x**2, axis=axes, keepdims=True))
            directions.append(draw * (norm_of(leaf) / (norm_of(draw) + 1e-10)))
        return jax.tree.unflatten(treedef, directions)


@on_host
def loss_line(
    evaluate: Callable[[Params], PyTree], params: Params, direction: Params, alphas: Sequence[float]
) -> PyTree:
    """Evaluates along a line, ``params + alpha * direction``.

    Args:
        evaluate: maps parameters to a pytree of scalars, for example
            :func:`adversarial_evaluation`.
        params: center of the line.
        direction: a pytree like ``params``.
        alphas: positions on the line, shape (n,).

    Returns:
        The pytree of ``evaluate`` with float64 arrays of shape (n,).

    Raises:
        ValueError: the direction has a different structure, or there are no positions.

    Example:
        >>> loss_line(lambda t: jnp.sum(t**2), jnp.zeros(2), jnp.ones(2), [-1, 0, 2]).tolist()
        [2.0, 0.0, 8.0]

    References:
        formulas H.1; Kanai et al., Figure 7.
    """
    return _surface(evaluate, params, [direction], [alphas])


@on_host
def loss_plane(
    evaluate: Callable[[Params], PyTree],
    params: Params,
    directions: tuple[Params, Params],
    alphas: Sequence[float],
    betas: Sequence[float],
) -> PyTree:
    """Evaluates on a plane, ``params + alpha * directions[0] + beta * directions[1]``.

    Args:
        evaluate: maps parameters to a pytree of scalars.
        params: center of the plane.
        directions: two pytrees like ``params``; two random draws are nearly orthogonal in many
            dimensions.
        alphas: positions along the first direction, shape (n,).
        betas: positions along the second direction, shape (k,).

    Returns:
        The pytree of ``evaluate`` with float64 arrays of shape (n, k).

    Raises:
        ValueError: the directions have a different structure, or there are no positions.

    Example:
        >>> axes = jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0])
        >>> loss_plane(lambda t: t @ t, jnp.zeros(2), axes, [0, 1], [0, 1, 2]).tolist()
        [[0.0, 1.0, 4.0], [1.0, 2.0, 5.0]]

    References:
        formulas H.1; Li et al. 2018.
    """
    return _surface(evaluate, params, list(directions), [alphas, betas])


def _surface(
    evaluate: Callable[[Params], PyTree],
    params: Params,
    directions: Sequence[PyTree],
    places: Sequence[ArrayLike],
) -> PyTree:
    axes = [np.asarray(values, np.float64).reshape(-1) for values in places]
    if any(len(axis) == 0 for axis in axes):
        raise ValueError("alphas or betas is empty; give at least one position")
    for index, direction in enumerate(directions):
        check_same_structure(f"direction {index}", direction, "params", params)
    results = []
    with precision_of(params):
        params, directions = as_arrays((params, directions))
        for amounts in np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(axes)):
            point = params
            for amount, direction in zip(amounts, directions, strict=True):
                move = lambda p, d, a=amount: p + jnp.asarray(a, p.dtype) * d
                point = jax.tree.map(move, point, direction)
            results.append(jax.tree.map(lambda v: np.asarray(v, np.float64), evaluate(point)))
    shape = tuple(len(axis) for axis in axes)
    return jax.tree.map(lambda *values: np.stack(values).reshape(shape), *results)


@on_host
def adversarial_evaluation(
    key: Key,
    apply_fn: ApplyFn,
    images: Array,
    labels: Array,
    *,
    norm: Norm = "linf",
    eps: float = 8 / 255,
    step_size: float = 2 / 255,
    num_steps: int = 20,
    batch_size: int | None = None,
    loss: LossFn = losses.cross_entropy,
) -> Callable[[Params], dict[str, Any]]:
    r"""A function that maps parameters to the adversarial loss and accuracy on these images.

    Each call attacks the network at the given parameters. Random starts depend only on the key and
    the image's index, so they are the same for all parameters. One compiled program serves all
    parameters.

    Args:
        key: typed PRNG key of the starts.
        apply_fn: the network in eval mode: parameters and images to logits; BatchNorm's statistics
            are closed over.
        images: of shape (N, H, W, C), in [0, 1].
        labels: of shape (N,).
        norm: "linf", "l2" or "l1".
        eps: radius.
        step_size: step of PGD.
        num_steps: steps of PGD; 0 evaluates at the clean images.
        batch_size: images per call, by default all; divides N.
        loss: per example, both attacked and reported.

    Returns:
        ``evaluate(params) -> {"loss": mean, "accuracy": fraction}``.

    Raises:
        ValueError: images, labels, radius or step that make no sense, or a batch size that does not
            divide N.

    Example:
        >>> apply_fn = lambda w, x: jnp.stack([x.sum((1, 2, 3)), w * jnp.ones(len(x))], 1)
        >>> evaluate = adversarial_evaluation(
        ...     jax.random.key(0), apply_fn, jnp.full((2, 2, 2, 1), 0.5), jnp.array([0, 1]),
        ...     eps=0.25, step_size=0.25)
        >>> round(float(evaluate(2.0)["loss"]), 4)
        1.3133

    References:
        formulas H.1.
    """
    key = as_key(key)
    check_norm(norm)
    check_images(images)
    check_labels(labels, len(images))
    check_eps(eps, norm, num_features=images[0].size)
    check_step(step_size)
    check_count("num_steps", num_steps, 0)
    count = len(images)
    batch = count if batch_size is None else batch_size
    check_count("batch_size", batch, 1)
    if count % batch:
        raise ValueError(f"batch_size={batch} does not divide the {count} images")
    split = lambda x: jnp.reshape(x, (count // batch, batch, *jnp.shape(x)[1:]))
    batches = (split(images), split(labels), split(jnp.arange(count)))

    @jax.jit
    def totals(model: Partial, params: Params, batches: tuple) -> dict[str, Array]:
        def one(part: tuple) -> tuple[Array, Array]:
            x, y, indices = part
            if num_steps:
                x, _ = pgd_stateful(
                    key,
                    lambda points, carry: (model(params, points), carry),
                    (),
                    x,
                    y,
                    indices=indices,
                    eps=eps,
                    step_size=step_size,
                    norm=norm,
                    num_steps=num_steps,
                    loss=loss,
                )
            logits = model(params, x)
            return loss(logits, y).sum(), (logits.argmax(axis=1) == y).sum()

        loss_sums, correct = jax.lax.map(one, batches)
        return {"loss": loss_sums.sum() / count, "accuracy": correct.sum() / count}

    def evaluate(params: Params) -> dict[str, Array]:
        model = trace(apply_fn, params, batches[0][0], name="apply_fn")
        return totals(model, params, batches)

    return evaluate
