"""The host side of AutoAttack: cuts images into chunks and runs the compiled programs on them."""

import concurrent.futures
import math
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...types import Array, Key
from .. import _driver as driver
from .._driver import Stream
from .._kernel import Kernel, Outcome
from . import memory
from .problem import Problem
from .verify import violations

_VOTES = 10  # evaluations of a randomized model that decide a success, by majority


class Candidates:
    """A kernel's report on the images of a chunk, one entry per image.

    Attributes:
        ids: indices in the data set.
        images: the candidate where the image was broken; others are not used.
        broken: whether the attack reports success.
        steps: the step that succeeded first.
        forward: forward passes.
        backward: backward passes.
    """

    def __init__(self, ids: np.ndarray, shape: tuple[int, ...]) -> None:
        self.ids = ids
        self.images = np.zeros((len(ids), *shape), np.float32)
        self.broken = np.zeros(len(ids), bool)
        self.steps = np.full(len(ids), -1, np.int32)
        self.forward = np.zeros(len(ids), np.int64)
        self.backward = np.zeros(len(ids), np.int64)


class Chunks:
    """Runs the compiled programs on images that live on the host.

    Args:
        problem: what is evaluated.
        batch_size: images in flight, None for as many as fit.
        devices: devices that share the blocks of a chunk, None for all accelerators or one CPU.
    """

    def __init__(
        self, problem: Problem, batch_size: int | None, devices: Sequence[Any] | None
    ) -> None:
        devices = memory.default_devices() if devices is None else list(devices)
        self.num_devices = max(len(devices), 1)
        self._workers, self._stop = memory.default_workers(devices), threading.Event()
        self._shapes = memory.chunk_shapes(problem, batch_size, devices, self._workers)
        self._chunk = self._shapes[0] * self._shapes[1]
        self.in_flight = self._chunk * self._workers
        mesh = jax.sharding.Mesh(np.asarray(devices), ("blocks",)) if len(devices) > 1 else None
        self._mesh, self.problem = mesh, problem
        self._labels = problem.labels.astype(np.int32)
        self._models = {rows: problem.model(rows) for rows in {1, *self._shapes[1:]}}
        self._code = list(problem.code.values())

    def each(
        self, ids: np.ndarray, compute: Callable[[np.ndarray], dict]
    ) -> Iterator[tuple[np.ndarray, dict]]:
        """Consecutive pieces of at most the chunk size, and the result for each.

        Workers get pieces of similar size, in whole blocks. If the caller stops early, so do the
        workers.
        """
        rows = self._shapes[-1]
        blocks_left = math.ceil(len(ids) / rows)
        number = math.ceil(math.ceil(len(ids) / self._chunk) / self._workers) * self._workers
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

    def predict(self, points: np.ndarray, ids: np.ndarray, stream: Stream, number: int) -> dict:
        """The record of a look at the predictions of a chunk."""
        logits = self.logits(points, ids, stream, number)
        wrong, votes = self._wrong(logits, ids), 0
        if self.problem.randomized:
            wrong, logits, votes = self.confirm(points, ids)
        return dict(logits=logits, correct=~wrong, cost=[len(ids) * (votes + 1), 0])

    def attack(self, kernel: Kernel, place: int, run: int, ids: np.ndarray) -> dict:
        """The record of one run on a chunk: attack, then verify what the kernel reports."""
        found = self._run(kernel, place, run, ids)
        picked = np.flatnonzero(found.broken)
        points, chosen = found.images[picked], ids[picked]
        wrong, logits, votes = self.confirm(points, chosen)
        problems = violations(
            points, self.problem.images[chosen], chosen, self.problem.norm, self.problem.eps
        )
        good = wrong & np.array([not problem for problem in problems], bool)
        if not self.problem.randomized:  # there, mostly correct draws are not an error
            problems = [
                problem or ("" if fooled else f"image {index} is not misclassified on its own")
                for problem, fooled, index in zip(problems, wrong, chosen, strict=True)
            ]
        return dict(
            broken=chosen[good],
            images=points[good],
            logits=logits[good],
            steps=found.steps[picked][good],
            violations=np.array([p for p in problems if p] or [""]),
            cost=[found.forward.sum(), found.backward.sum()],
            verified=votes * len(picked),
        )

    def logits(
        self, images: np.ndarray, ids: np.ndarray, stream: Stream, number: int
    ) -> np.ndarray:
        """Logits of at most a chunk of images, (B, K)."""
        shape = self._shape(len(ids))
        lanes_of = self._spread(np.arange(shape[0] * shape[1]), shape)
        out = driver.logits_of(
            self._models[shape[1]],
            self._key_of(0),
            (int(stream), number),
            self._place(images, lanes_of, shape),
            self._place(ids, lanes_of, shape),
            randomized=self.problem.randomized,
            mesh=self._mesh,
        )
        return np.asarray(out).reshape(-1, out.shape[-1])[np.argsort(lanes_of)][: len(ids)]

    def confirm(self, images: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
        """Evaluates candidates, each in its own batch.

        Args:
            images: candidates, float32.
            ids: their places.

        Returns:
            Whether each is misclassified (for a randomized model: by most evaluations), its
            logits in the last evaluation, and the number of evaluations of each.
        """
        votes = _VOTES if self.problem.randomized else 1
        wrong = np.zeros(len(ids))
        logits = np.zeros((len(ids), self.problem.num_classes), np.float32)
        if not len(ids):
            return wrong > 0, logits, votes
        # Padded to a power of two, so that few programs are compiled.
        size = 1 << max(math.ceil(math.log2(len(ids))), 3)
        pad = lambda values: np.concatenate([values, values[:1].repeat(size - len(ids), axis=0)])
        arguments = pad(images), pad(ids)
        for vote in range(votes):
            out = driver.logits_alone(
                self._models[1],
                self._key_of(0),
                vote,
                *arguments,
                randomized=self.problem.randomized,
            )
            logits = np.asarray(out)[: len(ids)]
            wrong += self._wrong(logits, ids)
        return wrong > votes / 2, logits, votes

    def _run(self, kernel: Kernel, place: int, run: int, ids: np.ndarray) -> Candidates:
        """One run of a kernel on a chunk.

        Finished images leave between spans of steps: if the others fit into fewer or smaller blocks
        they are regrouped, and the results so far are collected.

        Args:
            kernel: the attack.
            place: its place in the plan; separates its random numbers from those of the others.
            run: number of the run.
            ids: the images.
        """
        shape = self._shape(len(ids))
        lanes_of = self._spread(np.arange(shape[0] * shape[1]), shape)
        rows = driver.Rows(
            self._place(self.problem.images[ids], lanes_of, shape),
            self._place(self._labels[ids], lanes_of, shape),
            self._place(ids, lanes_of, shape),
            jnp.asarray((lanes_of < len(ids)).reshape(shape)),
        )
        common = (self._key_of(place + 1), self.problem.eps, jnp.int32(run))
        found = Candidates(ids, self.problem.images.shape[1:])
        state: Any = None
        outcome: Any = None
        for part in kernel.phases():
            program = driver.Program(
                part, self._code[place], self.problem.norm, self.problem.randomized, self._mesh
            )
            model = self._models[shape[1]]
            state = driver.begin(model, *common, rows, state, program=program)
            for first, last in part.spans():
                if self._stop.is_set():
                    raise InterruptedError("another part of the evaluation has stopped")
                model, span = self._models[shape[1]], jnp.asarray([first, last], jnp.int32)
                state, outcome = driver.advance(model, *common, rows, state, span, program=program)
                if not part.early_stop or last == part.num_steps:
                    continue
                alive = np.asarray(state.robust)  # waits for the device
                if not alive.any():
                    break
                # Compaction costs a copy, and a compilation for each new shape; it pays if it
                # removes whole blocks, since a block runs until its last image is broken.
                smaller = self._shape(int(alive.sum()))
                needed = math.ceil(alive.sum() / shape[1])
                if smaller != shape or needed < alive.any(axis=1).sum():
                    self._collect(found, outcome, lanes_of)
                    # Live rows first; broken ones fill what is left of the new shape.
                    kept = np.argsort(~alive.ravel(), stable=True)[: smaller[0] * smaller[1]]
                    order, shape = self._spread(kept, smaller), smaller
                    rows, state = driver.regroup((rows, state), order, shape=shape)
                    lanes_of = lanes_of[order]
        self._collect(found, outcome, lanes_of)
        if kernel.final_pass:
            mask = found.broken.reshape(-1, *(1,) * (self.problem.images.ndim - 1))
            points = np.where(mask, found.images, self.problem.images[ids])
            found.broken &= self._wrong(self.logits(points, ids, Stream.RUN, run), ids)
        return found

    def _collect(self, found: Candidates, outcome: Outcome, lanes_of: np.ndarray) -> None:
        """Copies an outcome to the host, row by row to its image."""
        kept = lanes_of < len(found.ids)
        to = lanes_of[kept]
        host = lambda values: np.asarray(values).reshape(-1, *values.shape[2:])[kept]
        found.forward[to] = host(outcome.forward)
        found.backward[to] = host(outcome.backward)
        found.steps[to] = host(outcome.broken_at)
        broken, images = host(outcome.success), outcome.images
        fresh = broken & ~found.broken[to]
        if self.problem.randomized:  # the point of the largest loss is the steadier candidate
            images, fresh = outcome.best_images, np.ones_like(broken)
        if fresh.any():
            found.images[to[fresh]] = host(images)[fresh]
        found.broken[to] |= broken | self.problem.randomized

    def _wrong(self, logits: np.ndarray, ids: np.ndarray) -> np.ndarray:
        wrong = logits.argmax(axis=1) != self._labels[ids]
        return wrong | ~np.isfinite(logits).all(axis=1)

    def _key_of(self, number: int) -> Key:
        return jax.random.fold_in(self.problem.key, number)

    def _shape(self, count: int) -> tuple[int, int]:
        """(blocks, rows) of a chunk of ``count`` images."""
        number, *sizes = self._shapes
        fitting = [rows for rows in sizes if number * rows >= count]
        return number, fitting[-1]

    def _spread(self, lanes: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
        """Deals blocks out to the devices in turn, so that all have live ones."""
        dealt = lanes.reshape(-1, self.num_devices, shape[1])
        return dealt.swapaxes(0, 1).reshape(-1)

    def _place(self, values: np.ndarray, lanes_of: np.ndarray, shape: tuple[int, int]) -> Array:
        """An array of the chunk's shape; padding repeats the first entry."""
        values = np.asarray(values)
        picked = values[np.where(lanes_of < len(values), lanes_of, 0)]
        return jnp.asarray(picked.reshape(*shape, *values.shape[1:]))
