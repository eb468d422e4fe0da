"""Minibatches as the model gets them, from a data set on the device or from a stream."""

import weakref
from collections.abc import Callable

import jax

from ..augment import Augmentation
from ..objectives import ApplyFn
from ..types import Array, Key, Params
from ._data import check_labels_fit, image_dtype, to_float
from ._minibatches import ATTACK, AUGMENT, Source, gather
from ._state import DeviceData, TrainState
from ._stream import Stream


class Feed:
    """Feeds a program with minibatches; for its arguments see :class:`Program`."""

    def __init__(
        self,
        apply_fn: ApplyFn,
        batch_size: int,
        augment: Augmentation | None,
        sharding: jax.sharding.Sharding | None,
    ) -> None:
        self.apply_fn, self.batch_size = apply_fn, batch_size
        self.augment, self.sharding = augment, sharding
        self._checked: weakref.ref[Stream] | None = None

    def source(
        self,
        state: TrainState,
        data: DeviceData | Stream,
        key: Key,
        step: int,
        num_steps: int,
        group: int,
    ) -> Source:
        """What a compiled call takes its minibatches ``step`` to ``step + num_steps - 1`` from.

        A chunk has room for an update of ``group`` minibatches, whatever the stream's own size.
        """
        if isinstance(data, DeviceData):
            return data
        if self._checked is None or self._checked() is not data:
            check_labels_fit(self.apply_fn, state, data.labels, self.shape_of(data, state.params))
            self._checked = weakref.ref(data)
        return data.take(
            key,
            step,
            num_steps,
            batch_size=self.batch_size,
            sharding=self.sharding,
            size=max(data.chunk, group),
        )

    def shape_of(self, data: Source | Stream, params: Params) -> jax.ShapeDtypeStruct:
        """Shape and dtype of a minibatch, as the model gets it."""
        shape = (self.batch_size, *data.image_shape)
        images = jax.ShapeDtypeStruct(shape, image_dtype(params))
        augment = self.augment
        if augment is None:
            return images
        return jax.eval_shape(lambda images: augment(jax.random.key(0), images), images)

    def minibatches(
        self, data: Source, key: Key, state: TrainState, num_steps: int | None
    ) -> Callable[[Array], tuple[Array, Array, Key]]:
        """Maps the next ``num_steps`` minibatch counters to images, labels and attack key."""
        pick = gather(data, key, state.step, num_steps, self.batch_size)
        dtype = image_dtype(state.params)

        def minibatch(step: Array) -> tuple[Array, Array, Key]:
            images, labels = pick(step)
            images = to_float(images, dtype=dtype)
            if self.augment is not None:
                augment_key = jax.random.fold_in(jax.random.fold_in(key, AUGMENT), step)
                images = self.augment(augment_key, images)
            if self.sharding is not None:
                images = jax.lax.with_sharding_constraint(images, self.sharding)
            attack_key = jax.random.fold_in(jax.random.fold_in(key, ATTACK), step)
            return images, labels, attack_key

        return minibatch
