"""The host side of AutoAttack: cuts images into chunks and runs the compiled programs on them."""

import concurrent.futures
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from ..._convolution import sharing_cores
from ...types import Array
from .. import _driver as driver
from .._driver import Stream
from .._kernel import Outcome
from . import memory
from .problem import Problem
from .verify import violations

_VOTES = 10  # evaluations of a randomized model that decide a success, by majority


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
        self._blocks, *self._sizes = memory.chunk_shapes(
            problem, batch_size, devices, self._workers
        )
        self.in_flight = self._blocks * self._sizes[0] * self._workers
        mesh = jax.sharding.Mesh(np.asarray(devices), ("blocks",)) if len(devices) > 1 else None
        self._mesh, self.problem = mesh, problem
        self._labels = problem.labels.astype(np.int32)
        self._models = {rows: problem.model(rows) for rows in self._sizes}
        self._judges = {rows: problem.judge(rows) for rows in {1, *self._sizes}}
        self._kernels, self._code = list(problem.plan.values()), list(problem.code.values())

    def each(
        self, ids: np.ndarray, compute: Callable[[np.ndarray], dict]
    ) -> Iterator[tuple[np.ndarray, dict]]:
        """Consecutive pieces of at most the chunk size, and the result for each.

        Workers get pieces of similar size, in whole blocks. If the caller stops early, so do the
        workers.
        """
        rows = self._sizes[-1]
        number = math.ceil(len(ids) / self.in_flight) * self._workers
        size = max(math.ceil(math.ceil(len(ids) / rows) / max(number, 1)) * rows, 1)
        pieces = [ids[start : start + size] for start in range(0, len(ids), size)]
        if self._workers == 1 or len(pieces) < 2:
            yield from zip(pieces, map(compute, pieces), strict=True)
            return
        pool = concurrent.futures.ThreadPoolExecutor(self._workers)
        try:
            yield from zip(pieces, pool.map(compute, pieces), strict=True)
        finally:
            self._stop.set()
            pool.shutdown(cancel_futures=True)
            self._stop.clear()

    def predict(self, points: np.ndarray, ids: np.ndarray, stream: tuple[Stream, int]) -> dict:
        """The record of a look at the predictions of a chunk."""
        logits, votes = self._logits(self._judges, points, ids, stream), 0
        wrong = self._wrong(logits, ids)
        if self.problem.randomized:
            wrong, logits, votes = self.confirm(points, ids)
        return dict(logits=logits, correct=~wrong, cost=[len(ids) * (votes + 1), 0])

    def attack(self, place: int, run: int, ids: np.ndarray) -> dict:
        """The record of one run of an attack on a chunk: what it reports is verified."""
        problem, kernel = self.problem, self._kernels[place]
        found, clean = self._run(place, run, ids), problem.images[ids]
        # Of a randomized model the point of the largest loss is the steadier candidate.
        images, broken = found.images, found.success
        if problem.randomized:
            images, broken = found.best_images, np.ones_like(broken)
        if kernel.final_pass:
            points = np.where(broken[:, None, None, None], images, clean)
            logits = self._logits(self._judges, points, ids, (Stream.RUN, run))
            broken &= self._wrong(logits, ids)
        points, chosen = np.asarray(images)[broken], ids[broken]
        wrong, logits, votes = self.confirm(points, chosen)
        problems = violations(points, clean[broken], chosen, problem.norm, problem.eps)
        good = wrong & (problems == "")
        if not problem.randomized:  # there, mostly correct draws are not an error
            alone = [f"image {index} is not misclassified on its own" for index in chosen]
            problems = np.where(wrong | (problems != ""), problems, np.array(alone, str))
        return dict(
            broken=chosen[good],
            images=points[good],
            logits=logits[good],
            steps=found.broken_at[broken][good],
            violations=problems[problems != ""],
            cost=[found.forward.sum(), found.backward.sum()],
            verified=votes * len(chosen),
        )

    def probe(self, number: int) -> np.ndarray:
        """Logits of the first images, as the attacks see them: a store compares them."""
        ids, size = np.arange(min(number, len(self._labels))), self._blocks * self._sizes[0]
        pieces = [ids[start : start + size] for start in range(0, len(ids), size)]
        look = lambda ids: self._logits(
            self._models, self.problem.images[ids], ids, (Stream.CLEAN, 0)
        )
        return np.concatenate([look(ids) for ids in pieces])

    @sharing_cores()
    def _logits(
        self,
        models: dict[int, Partial],
        images: np.ndarray,
        ids: np.ndarray,
        stream: tuple[Stream, int],
        lanes: np.ndarray | None = None,
    ) -> np.ndarray:
        """Logits of images, (B, K): at most a chunk, or as many as the lanes hold."""
        lanes = self._lanes(len(ids)) if lanes is None else lanes
        out = driver.logits_of(
            models[lanes.shape[1]],
            self.problem.key_of(0),
            (int(stream[0]), stream[1]),
            self._place(images, lanes),
            self._place(ids, lanes),
            randomized=self.problem.randomized,
            mesh=self._mesh,
        )
        return np.asarray(out).reshape(lanes.size, -1)[np.argsort(lanes.ravel())][: len(ids)]

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
        # Blocks of one row: a power of two for each device, so that few programs are compiled.
        size = 1 << max(math.ceil(math.log2(len(ids) / self.num_devices)), 3)
        lanes = np.arange(size * self.num_devices)[:, None]
        for vote in range(votes):
            logits = self._logits(self._judges, images, ids, (Stream.VOTE, vote), lanes)
            wrong += self._wrong(logits, ids)
        return wrong > votes / 2, logits, votes

    @sharing_cores()
    def _run(self, place: int, run: int, ids: np.ndarray) -> Outcome:
        """The outcome of one run of an attack on a chunk, a row per image, on the host.

        Finished images leave between spans of steps: if the others fit into fewer or smaller blocks
        they are regrouped, and the results so far are collected.

        Args:
            place: of the attack in the plan; separates its random numbers from those of the others.
            run: number of the run.
            ids: the images.
        """
        lanes, problem = self._lanes(len(ids)), self.problem
        rows = driver.Rows(
            self._place(problem.images[ids], lanes),
            self._place(self._labels[ids], lanes),
            self._place(ids, lanes),
            jnp.asarray(lanes < len(ids)),
        )
        shared = driver.Shared(
            self._models[lanes.shape[1]],
            problem.key_of(place + 1),
            jnp.asarray(problem.eps),
            jnp.int32(run),
        )
        state: Any = None
        outcome: Any = None
        found: Any = None
        for part in self._kernels[place].phases():
            program = driver.Program(
                part, self._code[place], problem.norm, problem.randomized, self._mesh
            )
            state = driver.begin(shared, rows, state, program=program)
            for first, last in part.spans():
                if self._stop.is_set():
                    raise InterruptedError("another part of the evaluation has stopped")
                span = jnp.asarray([first, last], jnp.int32)
                state, outcome = driver.advance(shared, rows, state, span, program=program)
                if not part.early_stop or last == part.num_steps:
                    continue
                alive = np.asarray(state.robust)  # waits for the device
                if not alive.any():
                    break
                order = self._order(alive)
                if order is not None:
                    found = _collect(found, outcome, lanes, len(ids))
                    rows, state = driver.regroup((rows, state), order)
                    lanes = lanes.ravel()[order]
                    shared = shared._replace(model=self._models[lanes.shape[1]])
        return _collect(found, outcome, lanes, len(ids))

    def _order(self, alive: np.ndarray) -> np.ndarray | None:
        """Which rows to keep, and in what order, or None to leave them as they are.

        Compaction costs a copy, and a compilation for each new shape; it pays if it removes whole
        blocks, since a block runs until its last image is broken.
        """
        smaller = self._rows(int(alive.sum()))
        needed = math.ceil(alive.sum() / alive.shape[1])
        if smaller == alive.shape[1] and needed >= alive.any(axis=1).sum():
            return None
        # Live rows first; broken ones fill what is left of the new shape.
        return self._deal(np.argsort(~alive.ravel(), stable=True), smaller)

    def _wrong(self, logits: np.ndarray, ids: np.ndarray) -> np.ndarray:
        wrong = logits.argmax(axis=1) != self._labels[ids]
        return wrong | ~np.isfinite(logits).all(axis=1)

    def _rows(self, count: int) -> int:
        """Rows of the blocks of a chunk of ``count`` images."""
        return [rows for rows in self._sizes if self._blocks * rows >= count][-1]

    def _lanes(self, count: int) -> np.ndarray:
        """Which of ``count`` images each row of a chunk holds; larger numbers are padding."""
        rows = self._rows(count)
        return self._deal(np.arange(self._blocks * rows), rows)

    def _deal(self, lanes: np.ndarray, rows: int) -> np.ndarray:
        """Blocks (blocks, rows) from the first of these, dealt to the devices in turn.

        So all devices have live ones.
        """
        dealt = lanes[: self._blocks * rows].reshape(-1, self.num_devices, rows)
        return dealt.swapaxes(0, 1).reshape(-1, rows)

    def _place(self, values: np.ndarray, lanes: np.ndarray) -> Array:
        """An array of the chunk's shape; padding repeats the first entry."""
        return jnp.asarray(np.asarray(values)[np.where(lanes < len(values), lanes, 0)])


def _collect(found: Outcome | None, outcome: Outcome, lanes: np.ndarray, number: int) -> Outcome:
    """Copies an outcome to the host, row by row to its image."""
    kept = lanes < number
    host = [np.asarray(values)[kept] for values in outcome]
    if found is None:
        found = Outcome._make(map(np.zeros_like, host))
    for old, new in zip(found, host, strict=True):
        old[lanes[kept]] = new
    return found
