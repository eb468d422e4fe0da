"""The compiled training programs: consecutive minibatches in one call, phase by phase."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from .._devices import all_at_once, batch_axis, on_each_device
from .._rewrite import fast_convolutions
from .._spread import spread_over
from .._transfers import on_host
from ..augment import Augmentation
from ..checks import check_count
from ..objectives import ApplyFn, LossAux, Objective
from ..optim import awp_value_and_grad
from ..types import Array, Key, Params, PyTree
from ._data import CheckedStep
from ._feed import Feed
from ._metrics import added, measured, nothing
from ._minibatches import REFRESH, Source, num_minibatches
from ._phases import Phase, placed
from ._state import DeviceData, Metrics, TrainState
from ._stream import Stream


class Program:
    """The compiled programs of one model, objective and minibatch size.

    Attributes:
        phases: the nonempty phases, with their positions.

    Args:
        apply_fn: ``(params, batch_stats, images, train) -> (logits, batch_stats)``.
        objective: the attack and the loss.
        batch_size: images per minibatch.
        augment: augmentation of the float images of a minibatch; default none.
        clean_pass: SGD only: after each update, run one train-mode pass over the clean images, as
        the AWP code does for its clean training accuracy; this updates the running statistics.
        weight_perturbation: gamma_A of adversarial weight perturbation, a number or an optax
            schedule of the minibatch counter; 0 disables it.
        attack_scale: factor of the attack's radius and step size, a schedule of the minibatch
            counter: ``optax.linear_schedule(0, 1, n)`` lets them grow over the first n minibatches.
            ``perturb`` of the objective gets it as ``scale``. Default: not passed.
        sharding: sharding of minibatches over devices, for example
            ``NamedSharding(mesh, PartitionSpec("batch"))``; default one device.
        sync_batch_norm: whether BatchNorm's statistics in train mode are those of the whole
            minibatch, which the devices exchange in every layer of every pass. False: those of each
            device's own images, as with ``torch.nn.DataParallel``. Then nothing is exchanged but
            the gradients, once per minibatch (twice with weight perturbation). The running
            statistics are averaged over the devices, where PyTorch keeps those of the first: both
            have the same mean, but the average is over all images. Random numbers are those of one
            device. No effect on one device.
        phases: the parts of a run, in order, for :meth:`advance`. Empty phases are dropped. Pass
        the program in place of an optimizer to :meth:`TrainState.create`.

    Example:
        Three minibatches of SGD, then EntropySGD with two inner iterations per outer step.

        >>> from jaxadv import objectives, optim, training
        >>> def apply_fn(params, batch_stats, images, train):
        ...     return images.reshape(images.shape[0], -1) @ params, batch_stats
        >>> objective = objectives.adversarial_cross_entropy(apply_fn, eps=0.1, step_size=0.05)
        >>> phases = [
        ...     training.Phase(3, lambda first, n_in: training.sgd(0.1)),
        ...     training.Phase(
        ...         8, lambda first, n_in: optim.entropy_sgd(0.1, n_in=n_in, noise=0.0), n_in=2
        ...     ),
        ... ]
        >>> program = training.Program(apply_fn, objective, batch_size=4, phases=phases)
        >>> data = training.DeviceData(jnp.zeros((16, 2, 2, 1), jnp.uint8), jnp.arange(16) % 3)
        >>> state, step, calls = training.TrainState.create(jnp.zeros((4, 3)), {}, program), 0, []
        >>> while count := program.call_length(step, left=8 - step):
        ...     state, metrics = program.advance(state, data, jax.random.key(0), count)
        ...     step += count
        ...     calls.append(count)
        >>> calls, int(state.step)
        ([3, 2, 2, 1], 8)
    """

    def __init__(
        self,
        apply_fn: ApplyFn,
        objective: Objective,
        *,
        batch_size: int,
        augment: Augmentation | None = None,
        clean_pass: bool = False,
        weight_perturbation: optax.ScalarOrSchedule = 0.0,
        attack_scale: optax.Schedule | None = None,
        sharding: jax.sharding.Sharding | None = None,
        sync_batch_norm: bool = True,
        phases: Sequence[Phase] = (),
    ) -> None:
        check_count("batch_size", batch_size, 1)
        self.apply_fn = apply_fn
        self._forward_fn = fast_convolutions(apply_fn)
        self.objective = objective
        self.batch_size = batch_size
        self.augment = augment
        self.clean_pass = clean_pass
        self.weight_perturbation = weight_perturbation
        self.attack_scale = attack_scale
        self.sharding = sharding
        self._axis, self._spread = None, all_at_once
        self._split_layers = lambda: spread_over(sharding if sync_batch_norm else None)
        if sharding is not None and not sync_batch_norm:
            self._axis = batch_axis(sharding, batch_size)
            self._spread = functools.partial(on_each_device, sharding=sharding)
        self.phases = placed(phases)
        self._feed = Feed(apply_fn, batch_size, augment, sharding)
        self._optimizers: list[Any] = [p.optimizer(p.first, p.n_in) for p in self.phases]
        self._takes = [
            self._taking(*pair) for pair in zip(self.phases, self._optimizers, strict=True)
        ]
        self._latest: tuple[Array | None, int] = None, 0

    def batches_per_epoch(self, num_images: int) -> int:
        """Minibatches per epoch: ceil(num_images / batch_size)."""
        return num_minibatches(num_images, self.batch_size)

    def init(self, params: Params) -> Any:
        """The optimizer state of the only phase, or a tuple with one per phase."""
        states = tuple(tx.init(params) for tx in self._optimizers)
        return states[0] if len(states) == 1 else states

    def phase_at(self, step: int) -> Phase:
        """The phase of a minibatch number; after the end, the last phase."""
        return self.phases[self._number_at(step)]

    def call_length(self, step: int, *, left: int, at_most: int | None = None) -> int:
        """Minibatches that the next call of :meth:`advance` can take.

        Args:
            step: minibatches taken so far.
            left: maximum number of minibatches, for example to the end of the epoch.
            at_most: a soft maximum, which an outer step of EntropySGD may exceed; default none.

        Returns:
            The minibatches of one outer step of EntropySGD (fewer at the end of the run), or all
            remaining SGD steps of the phase; 0 if the next update has more minibatches than are
            left.
        """
        phase = self.phase_at(step)
        update = min(phase.group, phase.end - step)
        if update > left:
            return 0
        if phase.n_in:
            return update
        return min(left, left if at_most is None else at_most, phase.end - step)

    @on_host
    def advance(
        self, state: TrainState, data: DeviceData | Stream, key: Key, num_steps: int
    ) -> tuple[TrainState, Metrics]:
        """Takes the next ``num_steps`` minibatches in one compiled call.

        Args:
            state: from :meth:`TrainState.create` with this program; donated.
            data: training images on the device, or a stream of them from the host.
            key: typed key of the run's minibatches and attacks.
            num_steps: number of minibatches, from :meth:`call_length`; of a stream, at most its
            chunk or one outer step of EntropySGD.

        Returns:
            The state and the metrics of the call, without waiting for either.

        Raises:
            ValueError: if the minibatches are not whole updates of one phase, or SGD steps on more
            than an epoch.
        """
        latest, step = self._latest
        if state.step is not latest:  # otherwise the number is known without waiting for the device
            step = int(state.step)
        number = self._number_at(step)
        if num_steps < 1 or num_steps != self.call_length(step, left=num_steps):
            raise ValueError(
                f"num_steps={num_steps} at minibatch {step} are not whole updates of one phase; "
                "use the number that call_length returns"
            )
        source = self._feed.source(state, data, key, step, num_steps, self.phases[number].group)
        states = [state.opt_state] if len(self.phases) == 1 else list(state.opt_state)
        state = state.replace(opt_state=states[number])
        state, metrics = self._takes[number](state, source, key, num_steps)
        if len(self.phases) > 1:
            states[number] = state.opt_state
            state = state.replace(opt_state=tuple(states))
        self._latest = state.step, step + num_steps
        return state, metrics

    def sgd_steps(
        self, tx: optax.GradientTransformation, *, perturbed_decay: float = 0.0
    ) -> CheckedStep:
        """A compiled function that takes SGD steps on consecutive minibatches.

        Args:
            tx: any optax optimizer.
            perturbed_decay: weight decay of ``tx`` if it should act on adversarially perturbed
            weights; see :func:`jaxadv.optim.awp_value_and_grad`.

        Returns:
            ``(state, data, key, num_steps) -> (state, Metrics)``. ``state`` is donated.
            ``num_steps`` is traced, at most an epoch of minibatches: one compilation serves all.
        """

        @self._split_layers()
        def run(
            state: TrainState, data: Source, key: Key, num_steps: Array
        ) -> tuple[TrainState, Metrics]:
            minibatch = self._feed.minibatches(data, key, state, None)

            def body(_: Array, carry: tuple[TrainState, Metrics]) -> tuple[TrainState, Metrics]:
                state, metrics = carry
                batch = minibatch(state.step)
                grads, batch_stats, found = self._gradient(
                    state.params, state.batch_stats, state.step, batch, perturbed_decay
                )
                updates, opt_state = tx.update(grads, state.opt_state, state.params)
                params = optax.apply_updates(state.params, updates)
                if self.clean_pass:
                    images, labels, _ = batch
                    logits, batch_stats = self._forward(params, batch_stats, images)
                    found["clean"] = jnp.sum(logits.argmax(axis=1) == labels, dtype=jnp.int32)
                state = TrainState(state.step + 1, params, batch_stats, opt_state)
                return state, added(metrics, found)

            metrics = self._no_metrics(state, data)
            if self.clean_pass:
                metrics["clean"] = jnp.int32(0)
            return jax.lax.fori_loop(0, num_steps, body, (state, metrics))

        most = lambda data: self.batches_per_epoch(data.pixels.shape[0])
        step = jax.jit(run, donate_argnums=0)
        return CheckedStep(step, self.apply_fn, self._feed.shape_of, most)

    def entropy_step(
        self, tx: optax.GradientTransformationExtraArgs, n_in: int, *, extra_minibatch: bool = False
    ) -> CheckedStep:
        """A compiled function that takes one outer step of EntropySGD on ``n_in`` minibatches.

        The running statistics follow the inner iterates through the chain; see
        :meth:`refresh_stats`.

        Args:
            tx: made by :func:`jaxadv.optim.entropy_sgd` with the same ``n_in``.
            n_in: inner iterations.
            extra_minibatch: first take the gradient at the slow weights on a separate minibatch, as
            in the presets "ucla_exact" and "lua"; a step then uses ``n_in + 1``.

        Returns:
            ``(state, data, key) -> (state, Metrics)``. ``state`` is donated.
        """

        @self._split_layers()
        def run(state: TrainState, data: Source, key: Key) -> tuple[TrainState, Metrics]:
            num_steps = n_in + extra_minibatch
            minibatch = self._feed.minibatches(data, key, state, num_steps)

            def grad_fn(
                params: Params, step: Array, carry: tuple[PyTree, Metrics]
            ) -> tuple[Params, tuple[PyTree, Metrics]]:
                batch_stats, metrics = carry
                grads, batch_stats, found = self._gradient(
                    params, batch_stats, step, minibatch(step)
                )
                return grads, (batch_stats, added(metrics, found))

            grads, carry = None, (state.batch_stats, self._no_metrics(state, data))
            if extra_minibatch:
                grads, carry = grad_fn(state.params, state.step, carry)
            updates: Any
            opt_state: Any
            updates, opt_state = tx.update(
                grads,  # pyright: ignore[reportArgumentType]
                state.opt_state,
                state.params,
                grad_fn=grad_fn,
                batches=state.step + jnp.arange(extra_minibatch, num_steps, dtype=jnp.int32),
                carry=carry,
            )
            batch_stats, metrics = opt_state.carry
            params = optax.apply_updates(state.params, updates)
            opt_state = opt_state._replace(carry=None)
            return TrainState(state.step + num_steps, params, batch_stats, opt_state), metrics

        return CheckedStep(jax.jit(run, donate_argnums=0), self.apply_fn, self._feed.shape_of)

    def refresh_stats(
        self, num_batches: int, perturb: Callable
    ) -> Callable[[TrainState, DeviceData | Stream, Key], PyTree]:
        """A compiled function that recomputes running statistics at the current parameters.

        EntropySGD never runs the model at its slow weights, so their statistics must be collected
        before evaluation: train-mode passes over augmented training minibatches, alternately
        adversarial and clean.

        Args:
            num_batches: passes; the old statistics keep a weight of 0.9^num_batches.
            perturb: :attr:`Objective.perturb` of an objective that attacks in eval mode.

        Returns:
            ``(state, data, key) -> batch_stats``.

        References:
            ``dry_feed`` of the EntropySGD code of Chaudhari et al.; docs/formulas.md D.7.
        """

        @self._split_layers()
        def run(
            state: TrainState, data: Source, key: Key, first: Array | int, end: Array | int
        ) -> PyTree:
            minibatch = self._feed.minibatches(data, key, state, num_batches)
            attack = self._scaled(perturb, state.step)

            def body(index: Array, batch_stats: PyTree) -> PyTree:
                images, labels, attack_key = minibatch(state.step + index)

                def passed(shared: Any, rows: Any, indices: Array | None) -> tuple[PyTree, Array]:
                    (index, key, params, batch_stats), (images, labels) = shared, rows

                    def attacked(_: None) -> Array:
                        return _at(indices, attack)(key, params, batch_stats, images, labels)[0]

                    images = jax.lax.cond(index % 2 == 0, attacked, lambda _: images, None)
                    logits, batch_stats = self._forward_fn(params, batch_stats, images, True)
                    return batch_stats, logits

                shared = (index, attack_key, state.params, batch_stats)
                return self._spread(passed)(shared, (images, labels))[0]

            return jax.lax.fori_loop(first, end, body, state.batch_stats)

        whole = jax.jit(lambda state, data, key: run(state, data, key, 0, num_batches))
        part = jax.jit(run)

        @on_host
        def refresh(state: TrainState, data: DeviceData | Stream, key: Key) -> PyTree:
            key = jax.random.fold_in(key, REFRESH)
            if isinstance(data, DeviceData):
                return whole(state, data, key)
            step = int(state.step)
            for first in range(0, num_batches, data.chunk):
                end = min(first + data.chunk, num_batches)
                chunk = self._feed.source(state, data, key, step + first, end - first, 1)
                state = state.replace(batch_stats=part(state, chunk, key, first, end))
            return state.batch_stats

        return refresh

    def _taking(self, phase: Phase, tx: Any) -> Callable[..., tuple[TrainState, Metrics]]:
        if not phase.n_in:
            return self.sgd_steps(tx, perturbed_decay=phase.perturbed_decay)
        extra = phase.extra_minibatch
        whole = self.entropy_step(tx, phase.n_in, extra_minibatch=extra)

        def take(
            state: TrainState, data: Source, key: Key, num_steps: int
        ) -> tuple[TrainState, Metrics]:
            if num_steps == phase.group:
                return whole(state, data, key)
            n_in = num_steps - extra  # the run ends inside a chain
            shorter: Any = phase.optimizer(phase.first, n_in)
            return self.entropy_step(shorter, n_in, extra_minibatch=extra)(state, data, key)

        return take

    def _number_at(self, step: int) -> int:
        if not self.phases:
            raise ValueError("the program has no phases; pass phases=[training.Phase(...)]")
        last = len(self.phases) - 1
        return next((i for i, phase in enumerate(self.phases) if step < phase.end), last)

    def _gradient(
        self,
        params: Params,
        batch_stats: PyTree,
        step: Array,
        batch: tuple[Array, Array, Key],
        decay: float = 0.0,
    ) -> tuple[Params, PyTree, Metrics]:
        images, labels, attack_key = batch
        perturb = self._scaled(self.objective.perturb, step)
        gamma = self.weight_perturbation
        value_and_grad = awp_value_and_grad(
            self.objective.loss,
            gamma(step) if callable(gamma) else gamma,
            has_aux=True,
            weight_decay=decay,
            axis_name=self._axis,
        )

        def gradient(shared: Any, rows: Any, indices: Array | None) -> tuple[Any, Array]:
            (key, params, batch_stats), (images, labels) = shared, rows
            attack = _at(indices, perturb)
            adversarial, batch_stats = attack(key, params, batch_stats, images, labels)
            (loss, aux), grads = value_and_grad(params, batch_stats, images, adversarial, labels)
            return (loss, aux.batch_stats, grads), aux.logits

        (loss, batch_stats, grads), logits = self._spread(gradient)(
            (attack_key, params, batch_stats), (images, labels)
        )
        aux = LossAux(batch_stats, logits)
        return grads, batch_stats, measured(step, loss, aux, labels, grads)

    def _scaled(self, perturb: Callable, step: Array) -> Callable:
        """``perturb`` with the scale of the attack at minibatch ``step``."""
        if self.attack_scale is None:
            return perturb
        return functools.partial(perturb, scale=self.attack_scale(step))

    def _forward(self, params: Params, batch_stats: PyTree, images: Array) -> tuple[Array, PyTree]:
        """One train-mode pass: the logits, and the new running statistics."""

        def forward(shared: Any, images: Any, _: Array | None) -> tuple[PyTree, Array]:
            params, batch_stats = shared
            logits, batch_stats = self._forward_fn(params, batch_stats, images, True)
            return batch_stats, logits

        batch_stats, logits = self._spread(forward)((params, batch_stats), images)
        return logits, batch_stats

    def _no_metrics(self, state: TrainState, data: Source) -> Metrics:
        """Metrics of zero minibatches; only their shapes are computed."""
        images = self._feed.shape_of(data, state.params)
        labels = jax.ShapeDtypeStruct((self.batch_size,), data.labels.dtype)
        loss, aux = jax.eval_shape(
            self.objective.loss, state.params, state.batch_stats, images, images, labels
        )
        return nothing(jax.eval_shape(measured, state.step, loss, aux, labels, state.params))


def _at(indices: Array | None, perturb: Callable) -> Callable:
    """``perturb`` of the images at these positions of the minibatch; None for all."""
    return perturb if indices is None else functools.partial(perturb, indices=indices)
