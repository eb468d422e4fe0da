r"""Stochastic gradient Langevin dynamics (SGLD) around an anchor: pure steps and a scanned chain.

The target is the local Gibbs measure of EntropySGD at the anchor :math:`\theta`,

.. math::
    p_\theta(\theta') \propto
    \exp\big(-\beta L(\theta') - \tfrac{\beta\gamma}{2}\|\theta - \theta'\|^2\big),

and one unadjusted Langevin step with a minibatch gradient :math:`g` is

.. math::
    \theta' \leftarrow \theta' - \eta'\big(g - \gamma(\theta - \theta')\big)
    + \sigma\,\mathcal N(0, I), \qquad \sigma = \sqrt{2\eta'/\beta}.

Nothing here depends on a loss or data set: :func:`langevin_step` is the integrator,
:func:`langevin_chain` scans `LangevinStep` over stacked minibatches. EntropySGD runs that chain, or
takes the same step once per call.

Sums (momentum buffers, averages) are kept in float32 for 16-bit parameters and in the parameters'
dtype otherwise; the iterate always has the parameters' dtype.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from ..checks import check_choice
from ..keys import typed_key
from ..types import Key, Params, PyTree
from ._moments import Averages, accumulator_dtype, init_averages, update_averages, widen
from ._momentum import MomentumSGD, is_zero

NOISE_CONVENTIONS = ("ucla", "paper", "temperature")

# (theta', minibatch, carry) -> (minibatch gradient at theta', carry)
GradFn = Callable[[Params, PyTree, Any], tuple[Params, Any]]

# What a chain carries besides its position: the averages, and the state of the inner optimizer.
Chain = tuple[Averages, PyTree]


class LangevinAverages(NamedTuple):
    """The averages of a chain.

    Attributes:
        offset: mean of theta' - theta, in the accumulation dtype.
        variance: element-wise variance of theta' (>= 0), or None if not requested.
        position: the last theta', in the parameters' dtype.
    """

    offset: PyTree
    variance: PyTree
    position: Params


def noise_std(noise: ArrayLike, *, step_size: ArrayLike, convention: str) -> ArrayLike:
    r"""Standard deviation of the Gaussian added in one step.

    ============= ============================= =====================================
    convention    standard deviation            temperature :math:`1/\beta` it samples
    ============= ============================= =====================================
    "ucla"        :math:`\epsilon\sqrt{2\eta'}` :math:`\epsilon^2`
    "paper"       :math:`\sqrt{\eta'}\epsilon`  :math:`\epsilon^2/2`
    "temperature" :math:`\sqrt{2\eta' T}`       :math:`T`
    ============= ============================= =====================================

    Args:
        noise: :math:`\epsilon` as in the reference code or the paper, or the temperature T; a
        scalar.
        step_size: :math:`\eta'`.
        convention: one of the three above.

    Returns:
        The standard deviation; the Python number 0.0 when ``noise`` is the Python number 0.

    Raises:
        ValueError: unknown convention.

    Example:
        >>> round(float(noise_std(0.1, step_size=0.5, convention="ucla")), 6)
        0.1
    """
    check_choice("noise_convention", convention, NOISE_CONVENTIONS)
    if is_zero(noise):
        return 0.0
    if convention == "temperature":
        return jnp.sqrt(2 * step_size * noise)
    return noise * jnp.sqrt((2 if convention == "ucla" else 1) * jnp.asarray(step_size))


def temperature(noise: ArrayLike, *, convention: str) -> ArrayLike:
    """Temperature 1/beta of the measure that the chain samples with ``noise``; see `noise_std`."""
    return {"ucla": noise * noise, "paper": noise * noise / 2, "temperature": noise}[convention]


def start_chain(inner: Any, anchor: Params, *, variance: bool) -> Chain:
    """The chain before its first step."""
    return init_averages(anchor, variance=variance), inner.init(widen(anchor, anchor))


class LangevinStep(NamedTuple):
    """One step of a chain around an anchor, and its contribution to the averages.

    Attributes:
        inner: the optimizer for the gradient step.
        step_size: eta', of the pull and the noise, and of the gradient if MomentumSGD takes it.
        gamma: strength of the pull to the anchor.
        noise_std: standard deviation of the noise.
        new_weight: weight of the newest iterate in the averages.
        ascend: flips the sign of the gradient.
    """

    inner: Any
    step_size: ArrayLike
    gamma: ArrayLike
    noise_std: ArrayLike = 0.0
    new_weight: ArrayLike = 0.25
    ascend: bool = False

    def advance(
        self, key: Key | None, position: Params, grads: PyTree, anchor: Params, chain: Chain
    ) -> tuple[Params, Chain]:
        """The increment of ``position``, in its dtype, and the updated chain.

        ``inner`` works in the accumulation dtype. Its momentum includes neither the pull nor the
        noise, as in the reference code.
        """
        averages, state = chain
        wide, grads = widen(position, position), widen(grads, position)
        pull = optax.tree.scale(self.gamma, optax.tree.sub(widen(anchor, position), wide))
        grads = optax.tree.scale(-1, grads) if self.ascend else grads
        updates, state = self.inner.update(grads, state, wide)
        if isinstance(self.inner, MomentumSGD):
            updates = optax.tree.scale(self.step_size, optax.tree.add(updates, pull))
        else:
            updates = optax.tree.add_scale(updates, self.step_size, pull)
        if not is_zero(self.noise_std):
            if key is None:
                raise ValueError(
                    f"key=None with noise_std={self.noise_std}; pass jax.random.key(0)"
                )
            noise = _tree_normal(typed_key(key), position)
            updates = optax.tree.add_scale(updates, self.noise_std, noise)
        increment = optax.tree.cast_like(updates, position)
        position = optax.tree.add(position, increment)
        averages = update_averages(averages, position, anchor, new_weight=self.new_weight)
        return increment, (averages, state)


def fold(key: Key | None, number: ArrayLike) -> Key | None:
    """The key of one step, if there is noise."""
    return None if key is None else jax.random.fold_in(key, number)


def _tree_normal(key: Key, like: Params) -> PyTree:
    # One key per leaf: a draw depends only on the leaf's index and shape, and the parameters are
    # never concatenated.
    draw = lambda x, index: jax.random.normal(
        jax.random.fold_in(key, index), jnp.shape(x), accumulator_dtype(x)
    )
    structure = jax.tree.structure(like)
    return jax.tree.map(draw, like, structure.unflatten(range(structure.num_leaves)))


def langevin_step(
    key: Key | None,
    position: Params,
    grad: PyTree,
    anchor: Params,
    *,
    step_size: ArrayLike,
    gamma: ArrayLike,
    noise_std: ArrayLike = 0.0,
) -> Params:
    r"""One unadjusted Langevin step toward the local Gibbs measure at ``anchor``.

    .. math::
        \theta' \leftarrow \theta' - \eta'\big(g - \gamma(\theta - \theta')\big)
        + \sigma\,\mathcal N(0, I)

    On a quadratic of curvature :math:`\lambda` and minimum :math:`t`, with
    :math:`\kappa = \lambda + \gamma`, its stationary law is Gaussian with mean
    :math:`(\gamma\theta + \lambda t)/\kappa` and variance
    :math:`\sigma^2/(2\eta'\kappa - \eta'^2\kappa^2)`.

    Args:
        key: PRNG key or seed of this step; may be None if ``noise_std`` is 0. Every leaf draws from
            ``fold_in(key, index of the leaf)``.
        position: :math:`\theta'`, any pytree.
        grad: :math:`g`, shaped like ``position``; a descent direction is its negative.
        anchor: :math:`\theta`, shaped like ``position``.
        step_size: :math:`\eta'`.
        gamma: :math:`\gamma`, the strength of the pull toward the anchor.
        noise_std: :math:`\sigma`; `noise_std` the function converts the usual conventions.

    Returns:
        The new position, in the dtype of ``position``.

    Raises:
        ValueError: ``key`` is None although there is noise.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxadv import optim
        >>> w, theta = jnp.array([1.0]), jnp.array([0.0])
        >>> optim.langevin_step(None, w, jnp.array([2.0]), theta, step_size=0.5, gamma=1.0)
        Array([-0.5], dtype=float32)

    References:
        Welling and Teh, "Bayesian learning via stochastic gradient Langevin dynamics", 2011.
        Kanai et al. (arXiv 2103.01400), Algorithm 1, whose printed sign of the gradient is wrong.
    """
    step = LangevinStep(MomentumSGD(), step_size, gamma, noise_std)
    chain = start_chain(step.inner, anchor, variance=False)
    return optax.tree.add(position, step.advance(key, position, grad, anchor, chain)[0])


def check_batches(batches: PyTree, num_steps: int, name: str) -> None:
    """Raises a ``ValueError`` unless every leaf of ``batches`` has leading axis ``num_steps``."""
    for path, leaf in jax.tree.leaves_with_path(batches):
        shape = jnp.shape(leaf)
        if not shape or shape[0] != num_steps:
            raise ValueError(
                f"batches{jax.tree_util.keystr(path)} has shape {shape}, but {name}={num_steps}; "
                f"stack one minibatch per inner step along a leading axis of length {num_steps}"
            )


def call_grad_fn(
    grad_fn: GradFn, position: Params, batch: PyTree, carry: Any
) -> tuple[PyTree, Any]:
    """Calls ``grad_fn`` and checks its outputs."""
    result, expected = grad_fn(position, batch, carry), jax.tree.structure(position)
    if not isinstance(result, tuple) or len(result) != 2:
        found = f"a {type(result).__name__}"
    elif jax.tree.structure(result[0]) != expected:
        found = f"gradients of structure {jax.tree.structure(result[0])}, not {expected} as params"
    else:
        return result
    raise ValueError(
        f"grad_fn returned {found}; it must return (gradients, carry) in that order, and carry may "
        "be passed through unchanged"
    )


def langevin_chain(
    key: Key | None,
    params: Params,
    grad_fn: GradFn,
    batches: PyTree,
    carry: Any = None,
    *,
    num_steps: int | None = None,
    step_size: ArrayLike,
    gamma: ArrayLike,
    noise_std: ArrayLike = 0.0,
    inner: Any = None,
    momentum: ArrayLike = 0.0,
    nesterov: bool = True,
    weight_decay: ArrayLike = 0.0,
    decay_after_momentum: bool = False,
    new_weight: ArrayLike = 0.25,
    variance: bool = True,
    ascend: bool = False,
) -> tuple[LangevinAverages, Any]:
    r"""Runs the chain from its anchor over stacked minibatches, as one ``lax.scan``.

    .. math::
        b \leftarrow m b + g, \quad
        \theta' \leftarrow \theta' - \eta'\big(g + m b - \gamma(\theta - \theta')\big)
        + \sigma\,\mathcal N, \quad
        \mu \leftarrow (1-\alpha)\mu + \alpha\theta', \qquad \theta'_0 = \mu_0 = \theta.

    Args:
        key: PRNG key or seed; step i draws from ``fold_in(key, i)``. May be None without noise.
        params: the anchor :math:`\theta`, where the chain starts.
        grad_fn: ``(theta', minibatch, carry) -> (gradient, carry)``.
        batches: pytree of arrays with a leading axis of length ``num_steps``; ``()`` if
            ``grad_fn`` needs no data.
        carry: any pytree passed through ``grad_fn`` (BatchNorm statistics, metrics).
        num_steps: length of the chain; by default that of ``batches``.
        step_size: :math:`\eta'`.
        gamma: :math:`\gamma`.
        noise_std: :math:`\sigma`.
        inner: an optax optimizer for the gradient steps, with its own learning rate, momentum, and
            weight decay; by default momentum SGD with the options below.
        momentum: m, with a buffer that starts at zero.
        nesterov: Nesterov or classical momentum.
        weight_decay: added to the gradient times :math:`\theta'`.
        decay_after_momentum: exclude weight decay from the momentum buffer.
        new_weight: :math:`\alpha`, weight of the newest iterate in the averages.
        variance: whether to also track the variance (one more copy of the parameters).
        ascend: flips the sign of the gradient, as Algorithm 1 of the paper prints it.

    Returns:
        The averages and the final carry.

    Raises:
        ValueError: a leaf of ``batches`` has a different length, the length is unknown,
            ``grad_fn`` does not return (gradient, carry), or an option is replaced by ``inner``.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxadv import optim
        >>> grad_fn = lambda w, batch, carry: (w - batch, carry + 1)  # loss (w - batch)^2 / 2
        >>> averages, steps = optim.langevin_chain(
        ...     jax.random.key(0), jnp.zeros(3), grad_fn, jnp.ones((20, 3)), 0,
        ...     step_size=0.5, gamma=1.0,
        ... )
        >>> averages.position.round(3), int(steps)  # pulled half-way back to the anchor
        (Array([0.5, 0.5, 0.5], dtype=float32), 20)
    """
    if num_steps is None:
        leaves = jax.tree.leaves(batches)
        if not leaves or not jnp.shape(leaves[0]):
            raise ValueError("batches has no leading axis; stack the minibatches or pass num_steps")
        num_steps = int(jnp.shape(leaves[0])[0])
    check_batches(batches, num_steps, "num_steps")
    key = None if key is None else typed_key(key)
    own = MomentumSGD(momentum, nesterov, weight_decay, decay_after_momentum)
    if inner is not None and own != MomentumSGD():
        raise ValueError(f"inner replaces {own}; set momentum and weight decay in inner")
    inner = own if inner is None else inner
    step = LangevinStep(inner, step_size, gamma, noise_std, new_weight, ascend)
    params = jax.tree.map(jnp.asarray, params)

    def body(state: Any, inputs: Any) -> tuple[Any, None]:
        position, chain, carry = state
        index, batch = inputs
        grads, carry = call_grad_fn(grad_fn, position, batch, carry)
        increment, chain = step.advance(fold(key, index), position, grads, params, chain)
        return (optax.tree.add(position, increment), chain, carry), None

    start = (params, start_chain(inner, params, variance=variance), carry)
    steps = (jnp.arange(num_steps, dtype=jnp.int32), batches)
    (position, (averages, _), carry), _ = jax.lax.scan(body, start, steps, length=num_steps)
    return LangevinAverages(averages.offset, averages.variance, position), carry
