"""Minibatches streamed from the host give the bits of a data set on the device."""

import gc
import os
import pathlib
import socket
import subprocess
import sys
import threading
import weakref

import jax
import numpy as np
import pytest

from jaxadv import objectives, optim, training
from tests.helpers.training_cases import ATTACK, KEY, START, apply_bn, apply_linear, equal, init_bn

PIXELS = np.random.default_rng(0).integers(0, 256, (22, 3, 3, 1)).astype(np.uint8)
LABELS = (np.arange(22) % 4).astype(np.int32)
STEPS = 11  # minibatches of 8: three epochs and a bit
SHARDED = jax.sharding.NamedSharding(
    jax.make_mesh((2,), ("batch",), (jax.sharding.AxisType.Auto,)),
    jax.sharding.PartitionSpec("batch"),
)


def dimmed(key, images):
    """An augmentation that costs the compiler little."""
    return images * jax.random.uniform(key, (len(images), 1, 1, 1))


def chains(first, n_in):
    return optim.entropy_sgd(0.4, key=jax.random.key(9), n_in=n_in, noise=1e-2)


def make_program(method):
    sgd = training.Phase(STEPS, lambda first, n_in: training.sgd(0.1))
    phases, gamma = [sgd], 0.0
    objective = objectives.adversarial_cross_entropy(apply_bn, **ATTACK)
    if method == "entropy":
        phases = [sgd._replace(end=2), training.Phase(STEPS, chains, n_in=3)]
    elif method == "trades":
        objective = objectives.trades(apply_bn, beta=6.0, **ATTACK)
    elif method == "awp":
        gamma = 0.01
    return training.Program(
        apply_bn,
        objective,
        batch_size=8,
        augment=dimmed if method == "at" else None,
        clean_pass=method == "at",
        weight_perturbation=gamma,
        phases=phases,
    )


def advanced(program, data, state, *, to, at_most):
    """The state after some minibatches, and the metrics of every call."""
    metrics, step = [], int(state.step)
    while count := program.call_length(step, left=to - step, at_most=at_most):
        state, found = program.advance(state, data, KEY, count)
        metrics.append(found)
        step += count
    return state, metrics


def start(program):
    return training.TrainState.create(*init_bn(), program)


@pytest.fixture
def memory_map(tmp_path):
    np.save(tmp_path / "images.npy", PIXELS)
    return np.load(tmp_path / "images.npy", mmap_mode="r")


@pytest.mark.parametrize("method", ["at", "entropy", "awp", "trades"])
def test_streams_give_the_bits_of_the_resident_set(method, memory_map):
    """Two sizes of chunks; the second is stopped, and resumed from the state by another stream."""
    program = make_program(method)
    data = training.DeviceData(PIXELS, LABELS)
    expected, metrics = advanced(program, data, start(program), to=STEPS, at_most=2)
    with training.Stream(memory_map, LABELS, chunk=2) as stream:
        state, found = advanced(program, stream, start(program), to=STEPS, at_most=2)
        equal((state, found), (expected, metrics))
        with training.Stream(memory_map, LABELS, chunk=4, threads=3) as stream:
            state, _ = advanced(program, stream, start(program), to=5, at_most=4)
        state = jax.tree.map(np.asarray, state)
        with training.Stream(PIXELS, LABELS, chunk=4) as stream:
            state, _ = advanced(program, stream, state, to=STEPS, at_most=4)
        equal(state, expected)


def test_refreshed_statistics_have_the_same_bits():
    """In chunks that do not divide the passes, across the end of an epoch."""
    program = make_program("at")
    refresh = program.refresh_stats(5, program.objective.perturb)
    state = start(program).replace(step=np.int32(1))
    expected = refresh(state, training.DeviceData(PIXELS, LABELS), KEY)
    with training.Stream(PIXELS, LABELS, chunk=3) as stream:
        equal(refresh(state, stream, KEY), expected)


class Reader:
    """Images that can break, and that count what is read of them."""

    shape, dtype = PIXELS.shape, PIXELS.dtype

    def __init__(self, broken=(), error=None):
        self.broken, self.error, self.read = set(broken), error or OSError("bad block"), []

    def where(self, row):
        return f"image {row} of part-{row // 10}.bin"

    def __getitem__(self, rows):
        self.read += list(rows)
        if self.broken & set(rows.tolist()):
            raise self.error
        return PIXELS[rows]


def linear(**options):
    objective = objectives.adversarial_cross_entropy(apply_linear, **ATTACK)
    phases = [training.Phase(99, lambda first, n_in: training.sgd(0.1))]
    program = training.Program(apply_linear, objective, batch_size=8, phases=phases, **options)
    return program, training.TrainState.create(START, {}, program)


def test_streams_give_the_bits_of_the_resident_set_on_two_devices():
    program, state = linear(sharding=SHARDED, augment=dimmed)
    expected = advanced(program, training.DeviceData(PIXELS, LABELS), state, to=7, at_most=3)
    with training.Stream(PIXELS, LABELS, chunk=3) as stream:
        chunk = stream.take(KEY, 0, 1, batch_size=8, sharding=SHARDED)
        assert chunk.pixels.sharding.shard_shape(chunk.pixels.shape) == (3, 4, 9)
        equal(advanced(program, stream, linear()[1], to=7, at_most=3), expected)


def test_no_more_than_two_chunks_are_read_ahead():
    reader, (program, state) = Reader(), linear()
    with training.Stream(reader, LABELS, chunk=2) as stream:
        for call in range(1, 4):
            state, _ = program.advance(state, stream, KEY, 2)
            assert len(reader.read) <= 8 * 2 * (call + 1)
    assert 8 * 2 * 3 <= len(reader.read)


def test_an_image_that_cannot_be_read_is_named_and_reading_goes_on_once_it_is_mended():
    reader, (program, state) = Reader(broken=[13]), linear()
    with training.Stream(reader, LABELS, chunk=1) as stream:
        step, problem = 0, None
        for _ in range(4):
            try:
                state, _ = program.advance(state, stream, KEY, 1)
            except OSError as error:
                problem = str(error)
                break
            step += 1
        assert problem == (
            "cannot read image 13 of part-1.bin (OSError: bad block); restore it and resume"
        )
        reader.broken.clear()
        state, _ = program.advance(state, stream, KEY, 1)
    whole, expected = linear()
    data = training.DeviceData(PIXELS, LABELS)
    expected, _ = whole.advance(expected, data, KEY, step + 1)
    equal(state.params, expected.params)


def test_a_file_that_says_nothing_of_itself_is_named_by_its_path(memory_map):
    class Broken(np.memmap):
        def __getitem__(self, rows):
            raise RuntimeError("gone\nfor good")

    broken = memory_map.view(Broken)
    program, state = linear()
    with training.Stream(broken, LABELS) as stream, pytest.raises(OSError) as error:
        program.advance(state, stream, KEY, 1)
    assert str(memory_map.filename) in str(error.value) and "\n" not in str(error.value)
    assert "RuntimeError: gone" in str(error.value)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        ([1], LABELS, r"images is a list; pass an object with shape \(N, H, W, C\)"),
        (PIXELS > 3, LABELS, "images has dtype bool"),
        (PIXELS, LABELS[:-1], "labels has shape .21,. for 22 images"),
        (PIXELS, LABELS + 1, "labels contains 4, but the model has 4 classes"),
        (PIXELS.astype(np.float32), LABELS, r"float32 reach from \d+ to \d+, not within \[0, 1\]"),
        (PIXELS[:7], LABELS[:7], "batch_size=8 exceeds the 7 training images"),
    ],
)
def test_data_that_cannot_be_trained_on_are_refused(images, labels, message):
    program, state = linear()
    with pytest.raises(ValueError, match=message):
        with training.Stream(images, labels) as stream:
            program.advance(state, stream, KEY, 1)


def test_a_call_longer_than_a_chunk_is_refused():
    program, state = linear()
    with training.Stream(PIXELS, LABELS, chunk=2) as stream:
        with pytest.raises(ValueError, match=r"num_steps=3 exceeds the 2 .* pass at_most=2"):
            program.advance(state, stream, KEY, 3)


def test_keys_whose_draws_depend_on_the_place_are_refused():
    with training.Stream(PIXELS, LABELS) as stream:
        with pytest.raises(ValueError, match="key has the generator rbg"):
            stream.take(jax.random.key(0, impl="rbg"), 0, 1, batch_size=8)


def running():
    return [t for t in threading.enumerate() if t.name.startswith("jaxadv-stream")]


def test_threads_end_with_the_stream_whether_closed_or_forgotten():
    before = len(running())
    with training.Stream(PIXELS, LABELS, threads=2) as stream:
        stream.take(KEY, 0, 1, batch_size=8)
        assert len(running()) > before
    assert len(running()) == before
    with pytest.raises(ValueError, match="the stream is closed"):
        stream.take(KEY, 0, 1, batch_size=8)
    stream = training.Stream(PIXELS, LABELS)
    stream.take(KEY, 0, 1, batch_size=8)
    threads, gone = running(), weakref.ref(stream)
    del stream
    gc.collect()
    for thread in threads:
        thread.join(timeout=10)
    assert gone() is None and len(running()) == before


@pytest.mark.slow
def test_each_of_two_processes_reads_its_columns_and_both_end_with_the_bits_of_one(tmp_path):
    with socket.socket() as found:
        found.bind(("localhost", 0))
        address = f"localhost:{found.getsockname()[1]}"
    program = "tests.helpers.streaming_process"
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}

    def begin(number, index, devices):
        path = tmp_path / f"{number}-{index}.npz"
        command = [sys.executable, "-m", program, address, str(number), str(index), str(path)]
        return path, subprocess.Popen(
            command,
            cwd=pathlib.Path(__file__).parents[2],
            env=environment | {"JAX_NUM_CPU_DEVICES": str(devices)},
        )

    begun = [begin(2, 0, 1), begin(2, 1, 1), begin(1, 0, 2)]
    try:
        assert [process.wait(timeout=300) for _, process in begun] == [0, 0, 0]
    finally:
        for _, process in begun:
            process.kill()
    first, second, one = (np.load(path) for path, _ in begun)
    np.testing.assert_array_equal(first["params"], one["params"])
    np.testing.assert_array_equal(second["params"], one["params"])
    np.testing.assert_array_equal(np.hstack([first["read"], second["read"]]), one["read"])
    assert first["read"].shape == (5, 4)
