"""A process of `startup.py`: prints the seconds of each part as one line of JSON."""

import collections
import importlib
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
    """Counts compiled programs and cache hits."""

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
    # Imported here, by name, because the import time is measured.
    load = importlib.import_module
    settings, process = load("experiments.settings"), load("experiments.cli.process")
    environment, build = load("experiments.run.environment"), load("experiments.run.build")
    devices, tasks = load("experiments.run.devices"), load("experiments.run.task")
    jax, training = load("jax"), load("jaxadv.training")
    environment.configure()
    process.split_cpu(dataset)
    jax.config.update("jax_log_compiles", True)
    counter, logger = Counter(), logging.getLogger("jax")
    logger.addHandler(counter)
    logger.propagate = False
    jax.devices()
    clock.mark("import")
    config = settings.load_config(method, scale, dataset)
    task = tasks.load_task(config)
    clock.mark("data")
    sharding = devices.data_sharding(config.batch_size)
    run, place = build.build(config, task, sharding), devices.everywhere(sharding)
    data = jax.device_put(training.DeviceData(*map(jax.numpy.asarray, task.train)), place)
    state = jax.device_put(run.make_state(), place)
    clock.mark("build")
    for name in ("first step", "next step"):
        count = run.program.call_length(int(state.step), left=run.batches_per_epoch, at_most=1)
        key = tasks.key_for(config, tasks.Stream.TRAIN)
        state, _ = run.program.advance(state, data, key, count)
        jax.block_until_ready(state)
        clock.mark(name)
    print(json.dumps({"seconds": clock.marks, **counter.counts}))


if __name__ == "__main__":
    main()
