"""AutoAttack in processes of its own: killed and resumed, and on four devices."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from jaxadv.attacks import AutoAttackResult

PROGRAM = """
import jax, numpy as np
from jaxadv.attacks import autoattack
from tests.helpers import autoattack_cases as cases
size = (6, 6, 1)
model = cases.net(3, size, classes=4, features=2, dtype=np.float32)
x = cases.images(4, 48, size, np.float32)
result = autoattack(
    jax.random.key(0), cases.jax_logits(model), x, cases.predictions(model, x), eps=0.02,
    version="custom", attacks=["apgd-ce", "square"], num_steps=8, num_queries=1000,
    store={store!r}, batch_size={batch}, progress=False,
    devices=jax.devices() if {devices} > 1 else None,
)
assert len(jax.devices()) == {devices}
result.save({output!r})
"""


def start(store, output, devices=1, batch=16):
    program = PROGRAM.format(
        store=store and str(store),
        output=str(output),
        devices=devices,
        batch=batch,
    )
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "PYTHONPATH": str(pathlib.Path(__file__).parents[3]),
    }
    return subprocess.Popen([sys.executable, "-c", program], env=environment)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    path = tmp_path_factory.mktemp("plain") / "result.npz"
    assert start(None, path).wait() == 0
    return AutoAttackResult.load(path)


def same(one, two):
    for name in ("robust", "broken_by", "images", "broken_step", "predictions"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name), err_msg=name)


def test_killed_and_resumed(undisturbed, tmp_path):
    store, output = tmp_path / "store", tmp_path / "result.npz"
    process = start(store, output)
    deadline = time.monotonic() + 300
    # 3 clean chunks and 3 of the filter: the 8th record is inside the first attack.
    while not (store / "000007.npz").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not output.exists()
    kept = {path.name: path.read_bytes() for path in store.glob("*.npz")}
    assert start(store, output).wait() == 0
    for name, content in kept.items():
        assert (store / name).read_bytes() == content
    assert len(list(store.glob("*.npz"))) > len(kept)
    resumed = AutoAttackResult.load(output)
    same(resumed, undisturbed)
    assert resumed.evaluations == undisturbed.evaluations
    assert 0 < resumed.robust.sum() < 48


def test_four_devices(undisturbed, tmp_path):
    output = tmp_path / "result.npz"
    assert start(None, output, devices=4, batch=48).wait() == 0
    same(AutoAttackResult.load(output), undisturbed)
