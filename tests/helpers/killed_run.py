"""A tiny run in a process of its own that ends itself with a signal at a chosen point.

    python -m tests.helpers.killed_run METHOD WORKDIR SIGNAL POINT COUNT

``POINT`` is "update" (after a compiled call), "write" (half of a file is written) or "replace"
(before the finished file takes its place); the signal comes when it is reached for the COUNT-th
time. "none" lets the run finish. Checkpoints are written after every compiled call.
"""

import os
import signal
import sys

import jax

jax.config.update("jax_num_cpu_devices", 2)  # as in the tests, so that results compare bitwise

from experiments.cli import process  # noqa: E402
from experiments.run import checkpoints, loop, train  # noqa: E402
from jaxadv import training  # noqa: E402
from tests.helpers.tiny_runs import tiny  # noqa: E402


def main():
    method, workdir, name, point, count = sys.argv[1:]
    left = {"now": int(count)}

    def reached(where):
        left["now"] -= where == point
        if where == point and left["now"] == 0:
            os.kill(os.getpid(), getattr(signal, name))

    loop.CHECKPOINT_SECONDS = 0
    loop.CALL_MINIBATCHES = {"cpu": 2}
    real = training.Program.advance

    def advance(*arguments):
        result = jax.block_until_ready(real(*arguments))
        reached("update")
        return result

    class File:
        def __init__(self, path, mode):
            self.file = open(path, mode)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def __getattr__(self, attribute):
            return getattr(self.file, attribute)

        def write(self, data):
            self.file.write(data[: len(data) // 2])
            self.file.flush()
            reached("write")
            self.file.write(data[len(data) // 2 :])

    replace = os.replace

    def replace_watched(source, target):
        reached("replace")
        replace(source, target)

    training.Program.advance = advance
    checkpoints.open = File
    os.replace = replace_watched
    process.execute(lambda: train.train_and_evaluate(tiny(method), workdir))


if __name__ == "__main__":
    main()
