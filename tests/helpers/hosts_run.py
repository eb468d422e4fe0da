"""Tiny runs of a BatchNorm network in one of several processes.

    python -m tests.helpers.hosts_run WORKDIR METHOD[,METHOD] [SIGNAL@PROCESS:CALL] --hosts=HOSTS

Each method's run is in a folder of its own. The signal reaches the process before a compiled call
of it; "SLEEP@PROCESS:SECONDS" delays the start of a process instead.
``EPOCHS`` in the environment makes the runs shorter, ``STREAM=true`` streams their images,
``SYNC=false`` keeps BatchNorm's statistics apart, and ``DIAGNOSTICS=N`` measures every N-th
minibatch. Only process 0 is told the real folder.
"""

import os
import signal
import sys
import time
from pathlib import Path

from experiments.cli import process
from experiments.run import loop, train
from jaxadv import training
from jaxadv.models import MODELS
from tests.helpers.tiny_runs import tiny, tiny_norm


def config(method: str, **overrides):
    """The configuration that the processes train."""
    epochs = int(os.environ.get("EPOCHS", "3"))
    overrides |= {"model": "tiny_norm", "width": None, "num_epochs": epochs}
    if "SYNC" in os.environ:
        overrides |= {"bn__sync": os.environ["SYNC"] == "true"}
    if "DIAGNOSTICS" in os.environ:
        overrides |= {"diagnostics__every": int(os.environ["DIAGNOSTICS"])}
    return tiny(method, data__stream=os.environ.get("STREAM", "false"), **overrides)


def main():
    *words, last = sys.argv[1:]
    hosts = last.removeprefix("--hosts=")
    workdir, methods = Path(words[0]), words[1].split(",")
    name, _, where = (words[2] if len(words) > 2 else "NONE@0:0").partition("@")
    at, count = map(int, where.split(":"))
    index = int(hosts.split(",")[2])
    workdir = workdir if index == 0 else workdir / "elsewhere"
    if at == index:
        if name == "SLEEP":
            time.sleep(count)
        elif name != "NONE":
            strike(name, count)
    MODELS["tiny_norm"] = tiny_norm
    loop.CALL_MINIBATCHES = {"cpu": 2}

    def action():
        for method in methods:
            train.train_and_evaluate(config(method), workdir / method)

    process.execute(action, hosts)


def strike(name: str, count: int) -> None:
    """Sends this process a signal before its ``count``-th call."""
    real, left = training.Program.advance, [count]

    def advance(*arguments):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), getattr(signal, name))
        return real(*arguments)

    training.Program.advance = advance


if __name__ == "__main__":
    main()
