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


class Compiler:
    """Seconds in which JAX traces, lowers and compiles, by kind and by program.

    Spans are reported as they end; those inside another one are not counted in it again.
    """

    KINDS = {
        "/jax/core/compile/jaxpr_trace_duration": "tracing",
        "/jax/core/compile/jaxpr_to_mlir_module_duration": "lowering",
        "/jax/core/compile/backend_compile_duration": "compiling or loading",
    }

    def __init__(self):
        self.kinds: dict[str, float] = collections.defaultdict(float)
        self.programs: dict[str, float] = collections.defaultdict(float)
        self.ended: list[tuple[float, float]] = []  # start and length, none inside another

    def __call__(self, event: str, start: float, end: float, **named) -> None:
        if kind := self.KINDS.get(event):
            own = end - start
            while self.ended and self.ended[-1][0] >= start:
                own -= self.ended.pop()[1]
            self.ended.append((start, end - start))
            self.kinds[kind] += own
            self.programs[f"{kind}, {named.get('fun_name', '')}"] += own

    def with_the_rest(self, marks: dict[str, float]) -> dict[str, float]:
        """All seconds up to now by kind; what is not compiling runs."""
        known = {"imports": marks["import"], "data": marks["data"], **self.kinds}
        return known | {"running": sum(marks.values()) - sum(known.values())}


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
    compiler = Compiler()
    jax.monitoring.register_event_time_span_listener(compiler)
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
    found = {}
    for name in ("first step", "next step"):
        count = run.program.call_length(int(state.step), left=run.batches_per_epoch, at_most=1)
        key = tasks.key_for(config, tasks.Stream.TRAIN)
        state, _ = run.program.advance(state, data, key, count)
        jax.block_until_ready(state)
        clock.mark(name)
        found = found or {
            "kinds": compiler.with_the_rest(clock.marks),
            "slowest": dict(sorted(compiler.programs.items(), key=lambda item: -item[1])[:8]),
        }
    print(json.dumps({"seconds": clock.marks, **counter.counts, **found}))


if __name__ == "__main__":
    main()
