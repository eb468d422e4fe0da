"""Signals are answered within seconds, also while a compiled call runs."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

# A call of a minute or more, with nothing of Python inside.
CALL = """
import sys, time
import jax, jax.numpy as jnp, numpy as np
from experiments.cli import process
from experiments.run import signals

signals.PATIENCE = 1.0

def computes():
    square = jax.jit(lambda x: jax.lax.fori_loop(0, 10**9, lambda _, y: jnp.sin(y @ y), x))
    print("computing", flush=True)
    square(jnp.ones((64, 64))).block_until_ready()

def stuck():
    matrix = np.random.default_rng(0).normal(size=(5000, 5000))
    print("computing", flush=True)
    np.linalg.eig(matrix)

def sleeps():
    print("computing", flush=True)
    try:
        time.sleep(60)
    finally:
        time.sleep(2 * signals.PATIENCE)  # answered: this may take its time
        print("cleaned up", flush=True)

process.execute({"computes": computes, "stuck": stuck, "sleeps": sleeps}[sys.argv[1]])
"""


def interrupted(name, signum):
    started = subprocess.Popen(
        [sys.executable, "-c", CALL, name], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    with started:
        assert started.stdout is not None and started.stdout.readline() == "computing\n"
        time.sleep(1.0)
        started.send_signal(signum)
        began = time.monotonic()
        try:
            out, errors = started.communicate(timeout=30)
        finally:
            started.kill()
    return started.returncode, time.monotonic() - began, out, errors


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_program_that_waits_for_a_computation(signum):
    status, seconds, _, _ = interrupted("computes", signum)
    assert status == 128 + signum and seconds < 15


def test_a_signal_ends_a_program_within_a_long_call():
    status, seconds, _, errors = interrupted("stuck", signal.SIGINT)
    assert status == 130 and seconds < 15
    assert errors == "interrupted; the work of the running call is lost\n"


def test_a_signal_that_was_answered_lets_a_program_finish():
    status, _, out, errors = interrupted("sleeps", signal.SIGTERM)
    assert (status, out, errors) == (143, "cleaned up\n", "")
