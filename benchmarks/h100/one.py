"""Compiles one program and writes what is read from it: run by `python -m benchmarks.h100`."""

import json
import pathlib
import sys
import time

import jax
from jax.experimental import topologies

from experiments.run.environment import commit

from . import hlo
from .programs import IMAGE, NUM_IMAGES, PROGRAMS, lower

TARGET = pathlib.Path(__file__).parent / "target_config.txtpb"


def compile_one(name: str) -> tuple[dict, str]:
    """What is read from a program compiled for the H100, and its text."""
    spec = PROGRAMS[name]
    topology = topologies.get_topology_desc(
        platform="cuda",
        target_config=TARGET.read_text(encoding="utf-8"),
        topology=f"1x1x{spec.devices}",
    )
    started = time.perf_counter()
    lowered = lower(spec, list(topology.devices))
    lowered_at = time.perf_counter()
    compiled = lowered.compile()
    text = compiled.as_text()
    memory = compiled.memory_analysis()
    pixels = f"[{NUM_IMAGES},{IMAGE[0] * IMAGE[1] * IMAGE[2]}]"
    found = {
        "spec": spec._asdict(),
        "commit": commit(),
        "trace_seconds": lowered_at - started,
        "compile_seconds": time.perf_counter() - lowered_at,
        "memory": {
            "arguments": memory.argument_size_in_bytes,
            "outputs": memory.output_size_in_bytes,
            "aliased": memory.alias_size_in_bytes,
            "temporaries": memory.temp_size_in_bytes,
        },
        "stablehlo_lines": lowered.as_text().count("\n"),
        **hlo.read(text, pixels),
    }
    return found, text


def main(name: str, output: str) -> None:
    """Writes NAME.json into a folder; nothing if the compiler fails."""
    found, text = compile_one(name)
    folder = pathlib.Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    # for whoever asks what else is in it
    (folder / f"{name}.hlo").write_text(text, encoding="utf-8")
    partial = folder / f"{name}.tmp"
    partial.write_text(json.dumps(found, indent=1), encoding="utf-8")
    partial.rename(folder / f"{name}.json")
    print(f"{name}: {found['compile_seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    main(*sys.argv[1:])
