r"""EntropySGD as an optax gradient transformation: one ``update`` is one outer step.

An outer step runs a Langevin chain of ``n_in`` minibatch gradients from the slow weights
:math:`\theta`, averages its iterates into :math:`\mu`, and moves :math:`\theta` towards the
average, because :math:`-\nabla F(\theta) = \gamma(\theta - \mathrm{E}[\theta'])` is the gradient
of the (negative) local entropy that smooths the loss. The whole step is one compiled program with
one ``lax.scan``, whatever ``n_in`` is. `entropy_sgd_stepwise` is the same step, one minibatch at
a time.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from ..types import Array, Key, Params, PyTree
from ._masks import check_floating, check_like, fill, hide, hides_leaves
from ._moments import accumulator_dtype, zeros_accumulator
from ._options import Options, resolve
from ._sgld import (
    add_weight_decay,
    call_grad_fn,
    check_batches,
    is_zero,
    langevin_chain,
    nesterov_momentum,
    temperature,
)


class EntropySGDState(NamedTuple):
    """State of `entropy_sgd`. The chain itself is temporary and leaves only its carry.

    Attributes:
        count: number of outer steps done, shape (), int32.
        momentum: outer momentum buffer M, shaped like the parameters; None if momentum is 0.
        key_data: words of the factory's key, never changed: noise comes from
            fold_in(fold_in(key, count), step).
        carry: final value that the last chain's gradient function handed on.
    """

    count: ArrayLike
    momentum: PyTree
    key_data: Array | None
    carry: Any


def copied(tree: PyTree) -> PyTree:
    """A copy that owns its buffers, so that donating the state leaves the original alive."""
    # The explicit dtype also turns Python scalars into strongly typed arrays.
    return jax.tree.map(lambda x: jnp.array(x, dtype=jnp.asarray(x).dtype, copy=True), tree)


def check_trainable(params: Params) -> None:
    """Raises a ``ValueError`` unless every leaf of ``params`` can be moved."""
    remedy = "keep it outside params, or hide it with optax.masked"
    check_floating(params, "EntropySGD moves", remedy)


def init_momentum(options: Options, params: Params) -> PyTree:
    """Outer momentum buffer at the start: zeros, or None if there is no momentum."""
    return None if is_zero(options.momentum) else zeros_accumulator(params)


def seed_momentum(options: Options, momentum: PyTree, grads: PyTree, first: Array) -> PyTree:
    """Puts the raw gradient into the buffer when ``first`` is True, if the options say so."""
    if options.momentum_init != "gradient" or momentum is None:
        return momentum
    if grads is None:
        raise ValueError(
            "grads=None, but momentum_init='gradient' (preset 'ucla_exact') starts the momentum "
            "buffer with the gradient of the first call; pass the gradient at params"
        )
    return jax.tree.map(lambda m, g: jnp.where(first, g.astype(m.dtype), m), momentum, grads)


def entropy_direction(options: Options, offset: PyTree, variance: PyTree, count: Array) -> PyTree:
    """The outer direction theta - mu, times gamma or divided by the Newton matrix if asked."""
    gamma = options.gamma_at(count)
    if not options.second_order:
        scale = -gamma if options.scale_by_gamma else -1
        return jax.tree.map(lambda e: (scale * e).astype(e.dtype), offset)
    # The Newton step gamma h (theta - mu) with gamma h = 1 / (1 - gamma var): gamma cancels.
    if options.beta_aware:
        gamma = gamma / temperature(options.noise, convention=options.noise_convention)

    def newton(e, var):
        curvature = jnp.maximum(1 - gamma * var, options.min_curvature)
        return (-e / curvature).astype(e.dtype)

    return jax.tree.map(newton, offset, variance)


def outer_increment(
    options: Options, direction: PyTree, params: Params, momentum: PyTree, count: Array
) -> tuple[Params, PyTree]:
    """The SGD step of the slow weights along ``direction``: weight decay, momentum, rate."""
    rate = options.outer_learning_rate(count)
    direction = add_weight_decay(direction, params, options.weight_decay)
    direction, momentum = nesterov_momentum(
        momentum, direction, momentum=options.momentum, nesterov=options.nesterov
    )
    increment = jax.tree.map(lambda d, p: (-rate * d).astype(p.dtype), direction, params)
    return increment, momentum


def gradient_direction(grads: PyTree, params: Params) -> PyTree:
    """The minibatch gradient in the accumulation dtype: the direction when ``n_in`` is 0."""
    if grads is None:
        raise ValueError("grads=None with n_in=0; pass the gradient at params, as to optax.sgd")
    return jax.tree.map(lambda g, p: g.astype(accumulator_dtype(p)), grads, params)


def entropy_sgd(
    learning_rate: optax.ScalarOrSchedule,
    *,
    key: Key | None = None,
    preset: str | None = None,
    n_in: int | None = None,
    inner_learning_rate: optax.ScalarOrSchedule | str | None = None,
    gamma: ArrayLike | None = None,
    scoping: ArrayLike | None = None,
    noise: ArrayLike | None = None,
    noise_convention: str | None = None,
    new_weight: ArrayLike | str | None = None,
    momentum: ArrayLike | None = None,
    inner_momentum: ArrayLike | None = None,
    nesterov: bool | None = None,
    weight_decay: ArrayLike | None = None,
    inner_weight_decay: ArrayLike | None = None,
    decay_after_momentum: bool | None = None,
    momentum_init: str | None = None,
    scale_by_gamma: bool | None = None,
    ascend: bool | None = None,
    second_order: bool | None = None,
    beta_aware: bool | None = None,
    min_curvature: ArrayLike | None = None,
    init_carry: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""EntropySGD, first or second order: one ``update`` is one outer step of ``n_in`` minibatches.

    .. math::
        \theta'_0 = \mu_0 = \theta; \quad \text{repeat } n_{in} \text{ times:} \quad
        g &\leftarrow \nabla L_{batch}(\theta') + \lambda\theta', \quad
        b \leftarrow m b + g, \\
        \theta' &\leftarrow \theta' - \eta'\big(g + m b - \gamma(\theta - \theta')\big)
        + \epsilon\sqrt{2\eta'}\,\mathcal N(0, I), \quad
        \mu \leftarrow (1 - \alpha)\mu + \alpha\theta'; \\
        d &\leftarrow \theta - \mu + \lambda\theta, \quad M \leftarrow m M + d, \quad
        \theta \leftarrow \theta - \eta(d + m M).

    Second order divides :math:`\theta - \mu` by :math:`\max(1 - \gamma\,\mathrm{var}, c)`, the
    diagonal Newton step (in which :math:`\gamma` cancels), with the variance of the iterates.
    It is Lookahead with a weak proximal pull: slow weights :math:`\theta`, the ones to evaluate
    and to checkpoint, and fast weights :math:`\theta'` that live inside one call.

    Call it as ``update(grads, state, params, grad_fn=..., batches=..., carry=...)``:

    * ``grad_fn(params, minibatch, carry) -> (gradient, carry)``;
    * ``batches``: pytree with a leading axis of length ``n_in`` (``()`` if no data are needed);
    * ``carry`` (optional): what the chain's first ``grad_fn`` gets, by default ``state.carry``,
      which ``init`` fills with ``init_carry``; the last one is returned as ``new_state.carry``.
      BatchNorm statistics, metrics and keys travel this way. Give ``init_carry`` if the state's
      structure has to be the same before and after the first step (``lax.scan``, ``lax.cond``);
    * ``all_params``: needed inside ``optax.masked`` and ``optax.multi_transform``, which show this
      transformation a part of the parameters: all of them, for ``grad_fn``, which then sees the
      hidden ones unchanged. Those wrappers also want ``grads`` shaped like the parameters (zeros
      will do, and leave leaves without an optimizer where they are);
    * ``grads``: gradient at ``params``. Used if ``n_in=0`` (plain Nesterov SGD) and, with
      ``momentum_init="gradient"``, in the first step; otherwise ignored and may be None.

    Every option defaults to the first column; ``preset`` selects another, and an explicit argument
    overrides the preset.

    ====================  ======== ============ ======= =============== ============= ===========
    argument              default  "ucla_exact" "lua"   "paper_literal" "paper_fixed" "theory"
    ====================  ======== ============ ======= =============== ============= ===========
    n_in                  20       20           20      20              20            20
    inner_learning_rate   0.1      0.1          0.1     0.1             0.1           0.1
    gamma                 0.03     0.03         0.03    0.03            0.03          0.03
    scoping               0        0 (inert)    1e-3    0               0             0
    noise                 1e-4     1e-4         1e-4    1e-4            1e-4          1
    noise_convention      ucla     ucla         ucla    paper           paper         temperature
    new_weight            0.25     0.25         0.25    0.75            0.75          0.25
    inner_momentum        0.9      0.9          0.9     0               0             0
    inner_weight_decay    5e-4     5e-4         5e-4    0               0             0
    decay_after_momentum  False    False        True    False           False         False
    momentum              0.9      0.9          0       0               0             0
    momentum_init         zeros    gradient     zeros   zeros           zeros         zeros
    weight_decay          5e-4     5e-4         0       0               0             0
    scale_by_gamma        False    False        False   True            False         True
    ascend                False    False        False   True            False         False
    usual learning_rate   0.1      0.1          1       0.1             0.1           -
    extra minibatch       no       yes          yes     no              no            no
    ====================  ======== ============ ======= =============== ============= ===========

    "paper_literal" is Algorithm 1 as printed: its sign of the loss gradient makes it climb, and
    :math:`\eta\gamma = 0.003` would keep it from training anyway. The extra minibatch of the
    reference code is spent at :math:`\theta` and its gradient thrown away, except that the first
    one starts the momentum buffer: to do exactly the same, draw ``n_in + 1`` minibatches an outer
    step, pass the gradient on the first as ``grads`` and the others as ``batches``. The reference
    code ran CIFAR-10 with weight decay 1e-3.

    Args:
        learning_rate: :math:`\eta` of the slow weights; a number or an optax schedule of the
            number of outer steps.
        key: PRNG key or seed; may be None only if ``noise`` is 0. It is copied into the state, and
            step i of outer step t draws from ``fold_in(fold_in(key, t), i)``, then per leaf.
        preset: one of the columns of the table, or None for the first.
        n_in: number of inner steps; 0 is Nesterov SGD on ``grads``.
        inner_learning_rate: :math:`\eta'`; a number, a schedule of the number of outer steps, or
            "tied" for the value of ``learning_rate``.
        gamma: :math:`\gamma`, the pull towards the slow weights. With Nesterov momentum m its
            effective strength is :math:`(1 - m)\gamma`.
        scoping: s of the pull :math:`\gamma(1 + s)^t` in outer step t = 1, 2, ...
        noise: :math:`\epsilon`, or the temperature :math:`1/\beta`; see ``noise_convention``.
        noise_convention: "ucla" :math:`\epsilon\sqrt{2\eta'}`, "paper" :math:`\epsilon\sqrt{\eta'}`
            or "temperature" :math:`\sqrt{2\eta'/\beta}`: standard deviation per inner step.
        new_weight: :math:`\alpha` in (0, 1], weight of the newest iterate in the averages; or
            "ucla" 0.25, "paper_literal" 0.75, "trades_slow_a" 0.3, "trades_slow_b" 0.7 (the
            paper's 0.75 and 0.3 can be read as the weight of the new or of the old).
        momentum: m of the slow weights, in [0, 1).
        inner_momentum: m of the chain, in [0, 1); its buffer starts at 0 in every outer step.
        nesterov: Nesterov's form of both momenta, or the classical one.
        weight_decay: :math:`\lambda` of the outer step.
        inner_weight_decay: :math:`\lambda` of the inner steps; by default that of the outer step.
        decay_after_momentum: whether inner weight decay bypasses the momentum buffer.
        momentum_init: start of the outer buffer, "zeros" or "gradient" (the raw first ``grads``).
        scale_by_gamma: outer direction :math:`\gamma(\theta - \mu)`; without effect on the
            second order, in which :math:`\gamma` cancels.
        ascend: flips the sign of the loss gradient in the chain.
        second_order: diagonal Newton step from the centred variance of the chain.
        beta_aware: the Newton matrix :math:`\gamma - \beta\gamma^2\Sigma` of the measure that is
            sampled, instead of :math:`\gamma - \gamma^2\Sigma`.
        min_curvature: c, the lower clamp of :math:`1 - \gamma\,\mathrm{var}`.
        init_carry: first value of ``state.carry``.

    Returns:
        An optax transformation whose updates have the dtype of the parameters; momentum buffers
        are float32 for 16-bit parameters. Under ``optax.inject_hyperparams`` pass
        ``static_args=("key", "n_in", "init_carry")``.

    Raises:
        ValueError: an option is out of range, or unknown (the message names the nearest preset);
            ``key`` is missing; at ``update``, ``grad_fn``, ``batches`` or ``params`` is missing or
            ``batches`` has another length than ``n_in``; a parameter is not floating-point; or
            parameters are hidden and ``all_params`` is missing.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from jaxadv import optim
        >>> grad_fn = lambda w, batch, carry: (w - batch, carry)  # gradient of |w - batch|^2 / 2
        >>> tx = optim.entropy_sgd(0.1, key=jax.random.key(0), n_in=20)
        >>> params = jnp.zeros(2)
        >>> state = tx.init(params)
        >>> for _ in range(30):
        ...     batches = jnp.ones((20, 2))
        ...     updates, state = tx.update(None, state, params, grad_fn=grad_fn, batches=batches)
        ...     params = optax.apply_updates(params, updates)
        >>> bool((abs(params - 1) < 0.1).all())
        True

    References:
        Kanai et al. (arXiv 2103.01400), Algorithm 1; Chaudhari et al., "Entropy-SGD: biasing
        gradient descent into wide valleys", 2017, and its code (ucla-vision/entropy-sgd).
    """
    options = resolve(
        dict(
            learning_rate=learning_rate,
            key=key,
            n_in=n_in,
            inner_learning_rate=inner_learning_rate,
            gamma=gamma,
            scoping=scoping,
            noise=noise,
            noise_convention=noise_convention,
            new_weight=new_weight,
            momentum=momentum,
            inner_momentum=inner_momentum,
            nesterov=nesterov,
            weight_decay=weight_decay,
            inner_weight_decay=inner_weight_decay,
            decay_after_momentum=decay_after_momentum,
            momentum_init=momentum_init,
            scale_by_gamma=scale_by_gamma,
            ascend=ascend,
            second_order=second_order,
            beta_aware=beta_aware,
            min_curvature=min_curvature,
        ),
        preset,
    )

    def init_fn(params) -> Any:
        check_trainable(params)
        return EntropySGDState(
            count=jnp.zeros([], jnp.int32),
            momentum=init_momentum(options, params),
            key_data=options.init_key_data(),
            carry=copied(init_carry),
        )

    def update_fn(
        updates,
        state,
        params=None,
        *,
        grad_fn=None,
        batches=None,
        carry=None,
        all_params=None,
        **extra_args,
    ) -> tuple[Any, Any]:
        del extra_args
        if params is None:
            raise ValueError("params=None; EntropySGD starts its chain at params, so pass them")
        if updates is not None and (options.n_in == 0 or options.momentum_init == "gradient"):
            check_like("grads", updates, params)
        params = jax.tree.map(jnp.asarray, params)
        carry = state.carry if carry is None else carry
        count = state.count
        momentum = seed_momentum(options, state.momentum, updates, count == 0)
        if options.n_in == 0:
            direction = gradient_direction(updates, params)
        else:
            averages, carry = langevin_chain(
                options.step_key(state.key_data, count),
                params,
                _with_frozen(_checked_grad_fn(grad_fn, batches, options.n_in), params, all_params),
                batches,
                carry,
                num_steps=options.n_in,
                new_weight=options.new_weight,
                variance=options.second_order,
                **options.step_arguments(count),
            )
            direction = entropy_direction(options, averages.offset, averages.variance, count)
        increment, momentum = outer_increment(options, direction, params, momentum, count)
        new_state = EntropySGDState(optax.safe_increment(count), momentum, state.key_data, carry)
        return increment, new_state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _with_frozen(grad_fn: Any, params: Params, all_params: Params) -> Any:
    """``grad_fn`` for parameters of which ``optax.masked`` has hidden some: those stay as they are.

    Raises:
        ValueError: leaves are hidden, and ``all_params`` does not say what they are.
    """
    if not hides_leaves(params):
        return grad_fn
    if all_params is None:
        raise ValueError(
            "params lacks the leaves that optax.masked or multi_transform hides, but grad_fn needs "
            "all; call update(..., all_params=params)"
        )

    def grad_fn_of_trained(trained, batch, carry):
        grads, carry = call_grad_fn(grad_fn, fill(trained, all_params), batch, carry)
        return hide(grads, trained), carry

    return grad_fn_of_trained


def _checked_grad_fn(grad_fn: Any, batches: Any, n_in: int) -> Any:
    if not callable(grad_fn):
        raise ValueError(
            f"grad_fn={grad_fn!r} is not a function; call update(grads, state, params, "
            "grad_fn=..., batches=...) with grad_fn(params, batch, carry) -> (gradient, carry)"
        )
    if batches is None:
        raise ValueError(
            f"batches=None with n_in={n_in}; pass {n_in} stacked minibatches, or batches=() if "
            "grad_fn needs no data"
        )
    check_batches(batches, n_in, "n_in")
    return grad_fn
