"""One process of `startup.py`: prints the seconds of each part as one line of JSON."""

import collections
import json
import logging
import sys
import time


class Clock:
    """Seconds since the last mark."""

    def __init__(self):
        self.marks, self.last = {}, time.perf_counter()

    def mark(self, name: str) -> None:
        now = time.perf_counter()
        self.marks[name], self.last = now - self.last, now


class Counter(logging.Handler):
    """Counts programs and those of them that the cache had."""

    def __init__(self):
        super().__init__()
        self.counts = collections.Counter()

    def emit(self, record):
        text = record.getMessage()
        self.counts["programs"] += text.startswith("Compiling ")
        self.counts["from_cache"] += text.startswith("Persistent compilation cache hit")


def main() -> None:
    """Imports, reads, builds and takes two steps."""
    method, scale, dataset = sys.argv[1:4]
    clock = Clock()
    from experiments import settings
    from experiments.cli import process
    from experiments.run import environment

    environment.configure()
    process.split_cpu(dataset)
    import jax

    from experiments.run import build
    from experiments.run.devices import data_sharding, everywhere
    from experiments.run.task import Stream, key_for, load_task
    from jaxadv import training

    jax.config.update("jax_log_compiles", True)
    counter, logger = Counter(), logging.getLogger("jax")
    logger.addHandler(counter)
    logger.propagate = False
    jax.devices()
    clock.mark("import")
    config = settings.load_config(method, scale, dataset)
    task = load_task(config)
    clock.mark("data")
    sharding = data_sharding(config.batch_size)
    run, place = build.build(config, task, sharding), everywhere(sharding)
    data = jax.device_put(training.DeviceData(*map(jax.numpy.asarray, task.train)), place)
    state = jax.device_put(run.make_state(), place)
    clock.mark("build")
    for name in ("first step", "next step"):
        count = run.program.call_length(int(state.step), left=run.batches_per_epoch, at_most=1)
        state, _ = run.program.advance(state, data, key_for(config, Stream.TRAIN), count)
        jax.block_until_ready(state)
        clock.mark(name)
    print(json.dumps({"seconds": clock.marks, **counter.counts}))


if __name__ == "__main__":
    main()
