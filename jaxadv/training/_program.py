"""The compiled programs of training: consecutive minibatches in one call."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from .._checks import check_count
from .._types import Array, Key
from ..augment import Augmentation
from ..objectives import ApplyFn, Objective
from ..optim import awp_value_and_grad
from ._data import CheckedStep, to_float
from ._state import NEVER, DeviceData, Metrics, TrainState

_SHUFFLE, _AUGMENT, _ATTACK, _REFRESH = range(4)  # the streams that one key is split into


class Program:
    """The compiled programs of one model, objective and minibatch size.

    Args:
        apply_fn: ``(params, batch_stats, images, train) -> (logits, batch_stats)``.
        objective: how minibatches are attacked and what is minimised.
        batch_size: images a minibatch.
        augment: applied to the float images of a minibatch; default none.
        clean_pass: SGD only: after each update run one train-mode pass over the clean images, as
            the AWP code does for its clean training accuracy; it moves the running statistics.
        weight_perturbation: gamma_A of adversarial weight perturbation, a number or an optax
            schedule of the minibatch counter; 0 is none.
        sharding: how minibatches are laid out over devices, for example
            ``NamedSharding(mesh, PartitionSpec("batch"))``; default one device.
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
        sharding: jax.sharding.Sharding | None = None,
    ):
        check_count("batch_size", batch_size, 1)
        self.apply_fn = apply_fn
        self.objective = objective
        self.batch_size = batch_size
        self.augment = augment
        self.clean_pass = clean_pass
        self.weight_perturbation = weight_perturbation
        self.sharding = sharding

    def batches_per_epoch(self, num_images: int) -> int:
        """Minibatches an epoch: ceil(num_images / batch_size)."""
        if num_images < self.batch_size:
            raise ValueError(
                f"batch_size={self.batch_size} exceeds the {num_images} training images; "
                f"use batch_size <= {num_images}"
            )
        return -(-num_images // self.batch_size)

    def sgd_steps(self, tx: optax.GradientTransformation, *, perturbed_decay: float = 0.0):
        """A compiled function that takes SGD steps on consecutive minibatches.

        Args:
            tx: any optax optimizer.
            perturbed_decay: weight decay of ``tx`` if it is to act on adversarially perturbed
                weights; see :func:`jaxadv.optim.awp_value_and_grad`.

        Returns:
            ``(state, data, key, num_steps) -> (state, Metrics)``. ``state`` is donated.
            ``num_steps`` is traced, at most an epoch of minibatches: one compilation serves all.
        """

        def run(state: TrainState, data: DeviceData, key: Key, num_steps):
            longest = self.batches_per_epoch(data.images.shape[0])
            minibatch = self._minibatches(data, key, state.step, longest)

            def body(_, carry):
                state, metrics = carry
                images, labels, attack_key = minibatch(state.step)
                grads, batch_stats, metrics = self._gradient(
                    state.params,
                    state.batch_stats,
                    metrics,
                    state.step,
                    images,
                    labels,
                    attack_key,
                    perturbed_decay,
                )
                updates, opt_state = tx.update(grads, state.opt_state, state.params)
                params = optax.apply_updates(state.params, updates)
                if self.clean_pass:
                    logits, batch_stats = self.apply_fn(params, batch_stats, images, True)
                    correct = jnp.sum(logits.argmax(axis=1) == labels, dtype=jnp.int32)
                    metrics = metrics._replace(clean=metrics.clean + correct)
                return TrainState(state.step + 1, params, batch_stats, opt_state), metrics

            return jax.lax.fori_loop(0, num_steps, body, (state, Metrics.zero()))

        return CheckedStep(jax.jit(run, donate_argnums=0), self.apply_fn)

    def entropy_step(
        self, tx: optax.GradientTransformationExtraArgs, n_in: int, *, extra_minibatch: bool = False
    ):
        """A compiled function that takes one outer step of EntropySGD on ``n_in`` minibatches.

        The running statistics follow the inner iterates through the chain; see
        :meth:`refresh_stats`.

        Args:
            tx: made by :func:`jaxadv.optim.entropy_sgd` with the same ``n_in``.
            n_in: inner iterations.
            extra_minibatch: first take the gradient at the slow weights on a minibatch of its own,
                as the presets "ucla_exact" and "lua" want; a step then uses ``n_in + 1``.

        Returns:
            ``(state, data, key) -> (state, Metrics)``. ``state`` is donated.
        """

        def run(state: TrainState, data: DeviceData, key: Key):
            num_steps = n_in + extra_minibatch
            minibatch = self._minibatches(data, key, state.step, num_steps)

            def grad_fn(params, step, carry):
                batch_stats, metrics = carry
                images, labels, attack_key = minibatch(step)
                grads, batch_stats, metrics = self._gradient(
                    params, batch_stats, metrics, step, images, labels, attack_key
                )
                return grads, (batch_stats, metrics)

            grads, carry = None, (state.batch_stats, Metrics.zero())
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

        return CheckedStep(jax.jit(run, donate_argnums=0), self.apply_fn)

    def refresh_stats(self, num_batches: int, perturb: Callable):
        """A compiled function that recomputes running statistics at the current parameters.

        EntropySGD never forwards its slow weights, so their statistics have to be gathered before
        they are evaluated: train-mode passes over augmented training minibatches, alternately
        adversarial and clean.

        Args:
            num_batches: passes; the statistics of before keep a weight of 0.9^num_batches.
            perturb: :attr:`Objective.perturb` of an objective that attacks in eval mode.

        Returns:
            ``(state, data, key) -> batch_stats``.

        References:
            ``dry_feed`` of the EntropySGD code of Chaudhari et al.; SPEC D.7.
        """

        def run(state: TrainState, data: DeviceData, key: Key):
            refresh_key = jax.random.fold_in(key, _REFRESH)
            minibatch = self._minibatches(data, refresh_key, state.step, num_batches)

            def body(index, batch_stats):
                images, labels, attack_key = minibatch(state.step + index)

                def attacked(_):
                    return perturb(attack_key, state.params, batch_stats, images, labels)[0]

                images = jax.lax.cond(index % 2 == 0, attacked, lambda _: images, None)
                return self.apply_fn(state.params, batch_stats, images, True)[1]

            return jax.lax.fori_loop(0, num_batches, body, state.batch_stats)

        return jax.jit(run)

    def _minibatches(self, data: DeviceData, key: Key, first_step: Array, num_steps: int):
        """A function from the next ``num_steps`` minibatch counters to images, labels, attack key.

        The permutations of the epochs that they can touch are made here, outside any loop.
        """
        num_images = data.images.shape[0]
        num_batches = self.batches_per_epoch(num_images)
        span = 1 + -(-num_steps // num_batches)
        first_epoch = first_step // num_batches
        shuffle_key = jax.random.fold_in(key, _SHUFFLE)

        def order(epoch):
            permutation = jax.random.permutation(jax.random.fold_in(shuffle_key, epoch), num_images)
            filled = num_batches * self.batch_size - num_images
            return jnp.concatenate([permutation, permutation[:filled]])

        orders = jax.vmap(order)(first_epoch + jnp.arange(span)).reshape(-1, self.batch_size)

        def minibatch(step):
            rows = orders[step - first_epoch * num_batches]
            images = to_float(data.images[rows])
            if self.augment is not None:
                augment_key = jax.random.fold_in(jax.random.fold_in(key, _AUGMENT), step)
                images = self.augment(augment_key, images)
            if self.sharding is not None:
                images = jax.lax.with_sharding_constraint(images, self.sharding)
            attack_key = jax.random.fold_in(jax.random.fold_in(key, _ATTACK), step)
            return images, data.labels[rows], attack_key

        return minibatch

    def _gradient(
        self, params, batch_stats, metrics, step, images, labels, attack_key, decay: float = 0.0
    ):
        adversarial, batch_stats = self.objective.perturb(
            attack_key, params, batch_stats, images, labels
        )
        gamma = self.weight_perturbation
        value_and_grad = awp_value_and_grad(
            self.objective.loss,
            gamma(step) if callable(gamma) else gamma,
            has_aux=True,
            weight_decay=decay,
        )
        (loss, aux), grads = value_and_grad(params, batch_stats, images, adversarial, labels)
        bad = jnp.where(jnp.isfinite(loss), NEVER, step)
        metrics = metrics._replace(
            loss=metrics.loss + loss.astype(metrics.loss.dtype) * self.batch_size,
            robust=metrics.robust + jnp.sum(aux.logits.argmax(axis=1) == labels, dtype=jnp.int32),
            count=metrics.count + self.batch_size,
            bad_step=jnp.minimum(metrics.bad_step, bad),
        )
        return grads, aux.batch_stats, metrics
