"""Runs that stream their training images from the host, and the rule that decides it."""

import jax
import numpy as np
import pytest

from experiments import settings
from experiments.run import source
from experiments.run.directory import RunDirectory
from experiments.run.task import Images
from jaxadv import training
from tests.helpers.tiny_runs import Stopped, assert_same_run, run, stop_after, tiny

IMAGES = Images(np.zeros((12, 8, 8, 1), np.uint8), np.zeros(12, np.int32))  # 768 bytes


@pytest.mark.parametrize(("method", "calls"), [("at", 2), ("at_ensgd", 3)])
def test_a_streamed_run_ends_with_the_bits_of_a_resident_one(method, calls, finished, tmp_path):
    """Stopped while streaming, resumed from the device."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
        taken = []
        real = training.Stream.take
        patch.setattr(training.Stream, "take", lambda *a, **k: taken.append(1) or real(*a, **k))
        stop_after(patch, calls)
        run(tiny(method, data__stream="true"), tmp_path)
    assert taken
    run(tiny(method, data__stream="false"), tmp_path)
    assert_same_run(RunDirectory(tmp_path), finished(method))


def test_auto_streams_what_exceeds_a_third_of_the_memory(monkeypatch):
    for memory, expected in ((3 * 768, False), (3 * 768 - 3, True)):
        monkeypatch.setattr(source, "device_memory", lambda memory=memory: memory)
        assert source.streams(tiny(), IMAGES) is expected
        assert source.streams(tiny(data__stream="true"), IMAGES)
        assert not source.streams(tiny(data__stream="false"), IMAGES)


def test_memory_is_what_the_device_says_or_its_part_of_the_machine(monkeypatch):
    assert 2**20 < source.device_memory() * jax.local_device_count() < 2**50
    device = type("Device", (), {"memory_stats": lambda self: {"bytes_limit": 5}})()
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    assert source.device_memory() == 5


def test_chunks_have_no_more_than_a_gigabyte(monkeypatch):
    monkeypatch.setattr(source, "_CHUNK_BYTES", 3 * 4 * 64)
    for at_most, chunk in ((2, 2), (8, 3)):
        with source.open_stream(tiny(batch_size=4), IMAGES, at_most=at_most) as stream:
            assert stream.chunk == chunk


def test_images_in_files_are_read_to_be_resident():
    class Reader:
        shape, dtype = IMAGES.images.shape, IMAGES.images.dtype

        def __getitem__(self, rows):
            return np.full((len(rows), 8, 8, 1), rows.reshape(-1, 1, 1, 1), np.uint8)

    data = source.resident(Images(Reader(), IMAGES.labels))
    np.testing.assert_array_equal(data.images[:, 3, 3, 0], np.arange(12))


def test_another_value_is_refused():
    config = settings.base("smoke")
    config.data.stream = "yes"
    with pytest.raises(ValueError, match=r"config\.data\.stream='yes'"):
        settings.resolve(config, "digits")
