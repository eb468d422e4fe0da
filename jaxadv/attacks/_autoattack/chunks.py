"""The host side of AutoAttack: cuts the images into chunks, regroups them, checks what breaks."""

import concurrent.futures
import math
import threading
from collections import deque
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from . import _autoattack_blocks as blocks
from ._autoattack_plan import Attack

_VOTES = 10  # evaluations of a randomised model that decide a success, by majority


class Outcome:
    """What a chunk came to, one entry an image.

    Attributes:
        ids: places in the data set.
        images: the candidate where the image was broken; others are not used.
        broken: whether the attack reports success.
        steps: the evaluation that was first misclassified.
        forward: forward passes.
        backward: backward passes.
    """

    def __init__(self, ids: np.ndarray, shape):
        self.ids = ids
        self.images = np.zeros((len(ids), *shape), np.float32)
        self.broken = np.zeros(len(ids), bool)
        self.steps = np.full(len(ids), -1, np.int32)
        self.forward = np.zeros(len(ids), np.int64)
        self.backward = np.zeros(len(ids), np.int64)


class Runner:
    """Runs the compiled programs on images that live on the host.

    Args:
        models: the model, traced for each number of rows that a program has (1 among them).
        key: typed PRNG key.
        images: all images, numpy.
        labels: all labels, numpy.
        num_classes: K.
        norm: the norm.
        eps: the radius.
        shapes: number of blocks of a chunk, then the sizes that a block may have, decreasing.
        early_exit: whether images stop at their first success.
        randomized: whether the model takes a key.
        devices: devices that share the blocks of a chunk, or an empty list.
        workers: chunks that threads work on at the same time.
    """

    def __init__(
        self, models, key, images, labels, num_classes, *, norm, eps, shapes, early_exit,
        randomized, devices, workers,
    ):  # fmt: skip
        self.images, self.labels = images, labels
        self.chunk = shapes[0] * shapes[1]
        self._shapes = shapes
        self.num_classes = num_classes
        self._devices = max(len(devices), 1)
        self._workers, self._stop = workers, threading.Event()
        mesh = jax.sharding.Mesh(np.asarray(devices), ("blocks",)) if len(devices) > 1 else None
        self._models, self._key, self._eps = models, key, eps
        self._early_exit, self.randomized = early_exit, randomized
        self._program = blocks.Program(None, norm, early_exit, randomized, mesh)

    def each(
        self, ids: np.ndarray, compute: Callable[[np.ndarray], dict]
    ) -> Iterator[tuple[np.ndarray, dict]]:
        """Consecutive pieces of at most the size of a chunk, and what is computed of each.

        The pieces of all workers are of similar size, whole blocks. When the caller stops early,
        the workers do so too.
        """
        rows = self._shapes[-1]
        blocks_left = math.ceil(len(ids) / rows)
        number = math.ceil(math.ceil(len(ids) / self.chunk) / self._workers) * self._workers
        size = math.ceil(blocks_left / max(number, 1)) * rows
        pieces = deque(ids[start : start + size] for start in range(0, len(ids), max(size, 1)))
        if self._workers == 1 or len(pieces) < 2:
            for piece in pieces:
                yield piece, compute(piece)
            return
        pool = concurrent.futures.ThreadPoolExecutor(self._workers)
        running: deque = deque()
        try:
            while pieces or running:
                while pieces and len(running) < self._workers:
                    running.append((pieces[0], pool.submit(compute, pieces.popleft())))
                piece, future = running.popleft()
                yield piece, future.result()
        finally:
            self._stop.set()
            pool.shutdown(cancel_futures=True)
            self._stop.clear()

    def logits(self, images: np.ndarray, ids: np.ndarray, number: int) -> np.ndarray:
        """Logits of at most a chunk of images, (B, K); the number separates random draws."""
        shape = self._shape(len(ids))
        lanes_of = self._spread(np.arange(shape[0] * shape[1]), shape)
        out = blocks.logits_of(
            self._models[shape[1]],
            self._stream(0),
            number,
            self._place(images, lanes_of, shape),
            self._place(ids, lanes_of, shape),
            program=self._program,
        )
        return np.asarray(out).reshape(-1, out.shape[-1])[np.argsort(lanes_of)][: len(ids)]

    def logits_alone(self, images: np.ndarray, ids: np.ndarray, number: int) -> np.ndarray:
        """Logits of images, each in a batch of its own."""
        size = 1 << max(math.ceil(math.log2(max(len(ids), 1))), 3)
        pad = lambda values: np.concatenate([values, values[:1].repeat(size - len(ids), axis=0)])
        out = blocks.logits_alone(
            self._models[1], self._stream(0), number, pad(images), pad(ids), program=self._program
        )
        return np.asarray(out)[: len(ids)]

    def run(self, attack: Attack, place: int, run: int, ids: np.ndarray) -> Outcome:
        """One run of an attack on one chunk.

        Args:
            attack: the attack.
            place: its place in the plan; separates its random numbers from those of the others.
            run: number of the run.
            ids: the images.

        Returns:
            The outcome.
        """
        program = self._program._replace(attack=attack)
        shape = self._shape(len(ids))
        lanes_of = self._spread(np.arange(shape[0] * shape[1]), shape)
        rows = blocks.Rows(
            self._place(self.images[ids], lanes_of, shape),
            self._place(self.labels[ids], lanes_of, shape),
            self._place(ids, lanes_of, shape),
            jnp.asarray((lanes_of < len(ids)).reshape(shape)),
        )
        common = (self._stream(place + 1), self._eps, jnp.int32(run))
        outcome = Outcome(ids, self.images.shape[1:])
        lanes, current = None, -1
        parts = blocks.segments(attack, program.norm, program.early_exit)
        last_phase = parts[-1][0]
        for number, (phase, first, last) in enumerate(parts):
            if self._stop.is_set():
                raise InterruptedError("another part of the evaluation has stopped")
            if phase != current:
                lanes = blocks.enter(
                    self._models[shape[1]], *common, rows, lanes, program=program, phase=phase
                )
                current = phase
            span = jnp.asarray([first, last], jnp.int32)
            lanes = blocks.advance(
                self._models[shape[1]], *common, span, rows, lanes, program=program, phase=phase
            )
            if number + 1 == len(parts) or not self._early_exit or phase != last_phase:
                continue
            alive = np.asarray(lanes.run.robust)
            if not alive.any():
                break
            smaller = self._shape(int(alive.sum()))
            needed = math.ceil(alive.sum() / shape[1])
            if smaller != shape or needed < alive.any(axis=1).sum():
                self._collect(attack, outcome, lanes, lanes_of)
                kept = np.argsort(~alive.ravel(), stable=True)[: smaller[0] * smaller[1]]
                order, shape = self._spread(kept, smaller), smaller
                rows, lanes = blocks.regroup((rows, lanes), order, shape=shape)
                lanes_of = lanes_of[order]
        self._collect(attack, outcome, lanes, lanes_of)
        return self._finish(attack, outcome)

    def _collect(self, attack: Attack, outcome: Outcome, lanes, lanes_of: np.ndarray) -> None:
        """Copies what the lanes know to the host."""
        state = lanes.run
        kept = lanes_of < len(outcome.ids)
        to = lanes_of[kept]
        host = lambda values: np.asarray(values).reshape(-1, *values.shape[2:])[kept]
        if attack.kind == "apgd":
            used = (host(lanes.spent) + host(state.evaluations)) * attack.eot
            outcome.forward[to] = used + int(attack.targets > 0)
            outcome.backward[to] = used
            outcome.steps[to] = host(state.broken_at)
            broken, images = ~host(state.robust), state.adversarial
        elif attack.kind == "fab":
            outcome.forward[to] = 2 * host(state.steps) + (3 if attack.targets else 2)
            per_step = 1 if attack.targets else self.num_classes
            outcome.backward[to] = host(state.steps) * per_step
            outcome.steps[to] = host(state.broken_at)
            broken, images = host(state.norms) <= self._eps, state.adversarial
        else:
            outcome.forward[to] = host(state.queries) + 1
            outcome.steps[to] = host(state.queries) - 1
            broken, images = ~host(state.robust), state.points
        fresh = broken & ~outcome.broken[to]
        if self._program.randomized:  # the point of the largest loss is the steadier candidate
            images, fresh = state.best_images, np.ones_like(broken)
        if fresh.any():
            outcome.images[to[fresh]] = host(images)[fresh]
        outcome.broken[to] |= broken | self._program.randomized

    def _finish(self, attack: Attack, outcome: Outcome) -> Outcome:
        """The last pass that FAB and Square spend on what they return."""
        if attack.kind != "apgd":
            clean = self.images[outcome.ids]
            mask = outcome.broken.reshape(-1, *(1,) * (clean.ndim - 1))
            logits = self.logits(np.where(mask, outcome.images, clean), outcome.ids, 0)
            wrong = logits.argmax(axis=1) != self.labels[outcome.ids]
            outcome.broken &= wrong | ~np.isfinite(logits).all(axis=1)
        return outcome

    def confirm(self, images: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
        """Evaluates candidates on their own.

        Args:
            images: candidates, float32.
            ids: their places.

        Returns:
            Whether each is misclassified (for a randomised model: by most evaluations), its
            logits in the last evaluation, and the number of evaluations of each.
        """
        votes = _VOTES if self._program.randomized else 1
        wrong = np.zeros(len(ids))
        logits = np.zeros((len(ids), self.num_classes), np.float32)
        for vote in range(votes):
            logits = self.logits_alone(images, ids, vote)
            wrong += (logits.argmax(axis=1) != self.labels[ids]) | ~np.isfinite(logits).all(axis=1)
        return wrong > votes / 2, logits, votes

    def _stream(self, number: int):
        return jax.random.fold_in(self._key, number)

    def _shape(self, count: int) -> tuple[int, int]:
        """(blocks, rows) of a chunk of ``count`` images."""
        number, *sizes = self._shapes
        fitting = [rows for rows in sizes if number * rows >= count]
        return number, fitting[-1]

    def _spread(self, lanes: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
        """Deals consecutive blocks out to the devices in turn, so that all have live ones."""
        dealt = lanes.reshape(-1, self._devices, shape[1])
        return dealt.swapaxes(0, 1).reshape(-1)

    def _place(self, values: np.ndarray, lanes_of: np.ndarray, shape: tuple[int, int]):
        """An array of the chunk's shape; padding repeats the first entry."""
        values = np.asarray(values)
        picked = values[np.where(lanes_of < len(values), lanes_of, 0)]
        return jnp.asarray(picked.reshape(*shape, *values.shape[1:]))
