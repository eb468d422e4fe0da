r"""EntropySGD as an optax gradient transformation: a whole outer step or one minibatch per call.

An outer step runs a Langevin chain of ``n_in`` minibatch gradients from the slow weights
:math:`\theta`, averages its iterates into :math:`\mu`, and moves :math:`\theta` toward the
average, because :math:`-\nabla F(\theta) = \gamma(\theta - \mathrm{E}[\theta'])` is the gradient
of the (negative) local entropy that smooths the loss.
"""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import optax

from .forms import scanned
from .forms import stepwise as one_by_one
from .options import EntropySGDOptions, resolve


def _listing_options(function: Callable) -> Callable:
    """Lists the options individually for ``help`` and ``optax.inject_hyperparams``."""
    signature = inspect.signature(function)
    own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    options = [
        inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=None)
        for field in dataclasses.fields(EntropySGDOptions)
        if field.name not in signature.parameters
    ]
    vars(function)["__signature__"] = signature.replace(parameters=own + options)
    return function


@_listing_options
def entropy_sgd(
    learning_rate: optax.ScalarOrSchedule | None = None,
    *,
    preset: str | None = None,
    stepwise: bool = False,
    init_carry: Any = None,
    **options: Any,
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
    It is Lookahead with a weak proximal pull: slow weights :math:`\theta`, which are evaluated and
    checkpointed, and fast weights :math:`\theta'`, which exist only within one call.

    Call it as ``update(grads, state, params, grad_fn=..., batches=..., carry=...)``:

    * ``grad_fn(params, minibatch, carry) -> (gradient, carry)``;
    * ``batches``: pytree with a leading axis of length ``n_in`` (``()`` if no data are needed);
    * ``carry`` (optional): the carry passed to the chain's first ``grad_fn``, by default
      ``state.carry``, which ``init`` sets to ``init_carry``; the last one is returned as
      ``new_state.carry``. Use it for BatchNorm statistics, metrics and keys. Pass ``init_carry`` if
      the state's structure must be the same before and after the first step (``lax.scan``,
      ``lax.cond``);
    * ``all_params``: all parameters, required inside ``optax.masked`` and
      ``optax.multi_transform``, which pass only some of them: ``grad_fn`` sees the hidden ones
      unchanged. Those wrappers also need ``grads`` shaped like the parameters (zeros suffice, and
      leave parameters without an optimizer unchanged);
    * ``grads``: gradient at ``params``. Used if ``n_in=0`` (plain Nesterov SGD) and, with
      ``momentum_init="gradient"``, in the first step; otherwise ignored and may be None.

    Options default to the first column; ``preset`` selects another, and explicit arguments override
    the preset.

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

    "paper_literal" is Algorithm 1 as printed: with its sign of the loss gradient it ascends, and
    :math:`\eta\gamma = 0.003` would keep it from training anyway. The reference code evaluates an
    extra minibatch at :math:`\theta` and discards its gradient, except that the first one
    initializes the momentum buffer: to reproduce this, draw ``n_in + 1`` minibatches per outer
    step, pass the gradient on the first as ``grads`` and the others as ``batches``. The reference
    code ran CIFAR-10 with weight decay 1e-3.

    Args:
        learning_rate: :math:`\eta` of the slow weights; a number or an optax schedule of the
            number of outer steps. Omit it if ``outer`` is given.
        preset: one of the columns of the table, or None for the first.
        stepwise: one minibatch per call; see `entropy_sgd_stepwise`.
        init_carry: initial value of ``state.carry``; scanned form only.
        **options: the options below, by keyword.

    Options:
        * ``key``: PRNG key or seed; may be None only if ``noise`` is 0. It is copied into the
          state, and step i of outer step t draws from ``fold_in(fold_in(key, t), i)``, then per
          leaf.
        * ``inner``: an optax optimizer for the minibatch gradients in the chain, instead of
          momentum SGD. It has its own learning rate, momentum, weight decay and clipping, and
          restarts in every outer step, so its schedules count the steps of one chain. The pull and
          the noise are added to its updates, with the step size ``inner_learning_rate``.
        * ``outer``: an optax optimizer for the direction :math:`\theta - \mu` at the slow weights,
          instead of momentum SGD with ``learning_rate``. Its schedules count outer steps.
        * ``n_in``: number of inner steps; 0 is Nesterov SGD on ``grads``.
        * ``inner_learning_rate``: :math:`\eta'`; a number, a schedule of the number of outer steps,
          or "tied" for the value of ``learning_rate``.
        * ``gamma``: :math:`\gamma`, the pull toward the slow weights. With Nesterov momentum m its
          effective strength is :math:`(1 - m)\gamma`.
        * ``scoping``: s of the pull :math:`\gamma(1 + s)^t` in outer step t = 1, 2, ...
        * ``noise``: :math:`\epsilon`, or the temperature :math:`1/\beta`; see
          ``noise_convention``.
        * ``noise_convention``: "ucla" :math:`\epsilon\sqrt{2\eta'}`, "paper"
          :math:`\epsilon\sqrt{\eta'}` or "temperature" :math:`\sqrt{2\eta'/\beta}`: standard
          deviation per inner step.
        * ``new_weight``: :math:`\alpha` in (0, 1], weight of the newest iterate in the averages; or
          "ucla" 0.25, "paper_literal" 0.75, "trades_slow_a" 0.3, "trades_slow_b" 0.7 (the paper's
          0.75 and 0.3 may be the weight of either the new iterate or the old average).
        * ``momentum``: m of the slow weights, in [0, 1).
        * ``inner_momentum``: m of the chain, in [0, 1); its buffer starts at 0 in every outer step.
        * ``nesterov``: Nesterov or classical form of both momenta.
        * ``weight_decay``: :math:`\lambda` of the outer step.
        * ``inner_weight_decay``: :math:`\lambda` of the inner steps; by default that of the outer
          step.
        * ``decay_after_momentum``: whether inner weight decay bypasses the momentum buffer.
        * ``momentum_init``: start of the outer buffer, "zeros" or "gradient" (the raw first
          ``grads``).
        * ``scale_by_gamma``: outer direction :math:`\gamma(\theta - \mu)`; no effect with second
          order, where :math:`\gamma` cancels.
        * ``ascend``: flips the sign of the loss gradient in the chain.
        * ``second_order``: diagonal Newton step from the centered variance of the chain.
        * ``beta_aware``: the Newton matrix :math:`\gamma - \beta\gamma^2\Sigma` of the measure
          actually sampled, instead of :math:`\gamma - \gamma^2\Sigma`.
        * ``min_curvature``: c, the lower clamp of :math:`1 - \gamma\,\mathrm{var}`.

    Returns:
        An optax transformation whose updates have the dtype of the parameters; momentum buffers
        are float32 for 16-bit parameters. Under ``optax.inject_hyperparams`` pass
        ``static_args=("key", "n_in", "init_carry")``.

    Raises:
        ValueError: an option is out of range, an unknown choice (the message suggests the closest)
            or replaced by ``inner`` or ``outer``; ``key`` is missing; at ``update``, ``grad_fn``,
            ``batches`` or ``params`` is missing or the length of ``batches`` is not ``n_in``; a
            parameter is not floating-point; or parameters are hidden and ``all_params`` is missing.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from jaxadv import optim
        >>> grad_fn = lambda w, batch, carry: (w - batch, carry)  # gradient of |w - batch|^2 / 2
        >>> tx = optim.entropy_sgd(0.1, key=jax.random.key(0), n_in=20)
        >>> params = jnp.zeros(2)
        >>> state = tx.init(params)
        >>> @jax.jit
        ... def step(params, state, batches):
        ...     updates, state = tx.update(None, state, params, grad_fn=grad_fn, batches=batches)
        ...     return optax.apply_updates(params, updates), state
        >>> for _ in range(30):
        ...     params, state = step(params, state, jnp.ones((20, 2)))
        >>> bool((abs(params - 1) < 0.1).all())
        True

        Clipping in the chain and Adam at the slow weights:

        >>> clipped = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1, momentum=0.9))
        >>> tx = optim.entropy_sgd(inner=clipped, outer=optax.adam(1e-3), key=jax.random.key(0))

    References:
        Kanai et al. (arXiv 2103.01400), Algorithm 1; Chaudhari et al., "Entropy-SGD: biasing
        gradient descent into wide valleys", 2017, and its code (ucla-vision/entropy-sgd).
    """
    resolved = resolve(preset, dict(options, learning_rate=learning_rate))
    if not stepwise:
        return scanned(resolved, init_carry)
    if init_carry is not None:
        raise ValueError(
            "init_carry cannot be used with stepwise=True; your loop carries such values itself"
        )
    return one_by_one(resolved)


@_listing_options
def entropy_sgd_stepwise(
    learning_rate: optax.ScalarOrSchedule | None = None,
    *,
    preset: str | None = None,
    **options: Any,
) -> optax.GradientTransformationExtraArgs:
    """EntropySGD, one minibatch per call: `entropy_sgd` with ``stepwise=True``.

    The loop's parameters are the fast weights theta', where it evaluates the gradient;
    `slow_params` returns the slow weights theta. Every ``n_in``-th call ends with the outer step,
    after which fast and slow weights agree. An outer step starts from the current parameters, so
    other transformations may change the updates at that call but should not touch those in between.

    It uses the same noise as `entropy_sgd` and matches it bit for bit, with two exceptions. The
    step back to the slow weights is returned as the difference ``theta - theta'``, which is exact
    if they are within a factor of 2 of each other and otherwise off by one rounding. And the
    compiler may fuse a multiplication with an addition in only one of the programs.

    Differences in use: with ``momentum_init="gradient"`` the momentum buffer starts with the
    gradient of the first call, which also takes the first inner step; there is no extra minibatch.
    Your loop carries BatchNorm statistics and metrics itself. With ``n_in=0`` every call is a step
    of Nesterov SGD.

    Inside ``optax.masked`` or ``optax.multi_transform`` it trains the leaves it is given; like any
    optax transformation it does not affect the others, so chain
    ``optax.masked(optax.set_to_zero(), ...)`` after a mask to freeze them. Give each group its own
    key. A later ``optax.set_to_zero`` alone also freezes leaves.

    Args:
        learning_rate: see `entropy_sgd`.
        preset: see `entropy_sgd`.
        **options: see `entropy_sgd`.

    Returns:
        An optax transformation whose state contains up to five copies of the parameters.

    Raises:
        ValueError: see `entropy_sgd`; at ``update``, if the gradient or ``params`` is missing.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from jaxadv import optim
        >>> tx = optim.entropy_sgd_stepwise(0.1, key=jax.random.key(0), n_in=5)
        >>> fast = jnp.ones(2)
        >>> state = tx.init(fast)
        >>> @jax.jit
        ... def step(fast, state):
        ...     updates, state = tx.update(2 * fast, state, fast)  # gradient of |fast|^2
        ...     return optax.apply_updates(fast, updates), state
        >>> for _ in range(500):
        ...     fast, state = step(fast, state)
        >>> bool((abs(optim.slow_params(state, fast)) < 1e-2).all())
        True
    """
    return entropy_sgd(learning_rate, preset=preset, stepwise=True, **options)
