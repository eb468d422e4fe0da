r"""Compiles programs for an H100 on a machine without one, and checks what is said about them.

    make test-h100                                  # everything; hours on two cores
    python -m benchmarks.h100 --programs=tiny_at,at # some
    python -m benchmarks.h100 --only-read --output=benchmarks/results/h100.json

Needs the three packages of requirements-h100.txt in a folder of their own (they must not replace
the CPU's JAX), no GPU and no driver. A program that is compiled already is not compiled again. What
comes out is what the compiler says: nothing is run, and no time is measured.
"""

import json
import os
import pathlib
import subprocess
import sys
from importlib import metadata

from experiments.cli.options import Parser, folder

from .._report import provenance
from . import claims, table
from .programs import PROGRAMS

PACKAGES = ("jax-cuda12-pjrt", "jax-cuda12-plugin", "nvidia-cuda-nvcc-cu12")


def parse(arguments=None):
    """The command line."""
    parser = Parser(
        prog="python -m benchmarks.h100", description=str(__doc__).split("\n", maxsplit=1)[0]
    )
    parser.add_argument(
        "--programs", default=",".join(PROGRAMS), help="which, separated by commas; default all"
    )
    parser.add_argument(
        "--site",
        type=folder,
        default=".h100",
        help="folder with the packages of requirements-h100.txt; default .h100",
    )
    parser.add_argument(
        "--compiled",
        type=folder,
        default="runs/h100",
        help="folder for one JSON file per program, which are not compiled again; default "
        "runs/h100",
    )
    parser.add_argument("--output", type=folder, help="JSON file for all results")
    parser.add_argument(
        "--only-read", action="store_true", help="compile nothing, collect what is compiled"
    )
    return parser.parse_args(arguments)


def environment(site: pathlib.Path) -> dict[str, str]:
    """The environment of a process that compiles for CUDA without a GPU."""
    nvcc = site.resolve() / "nvidia" / "cuda_nvcc"
    if not nvcc.is_dir():
        raise SystemExit(
            f"--site={site} has no nvidia/cuda_nvcc; run make test-h100, which installs it"
        )
    flags = f"--xla_gpu_autotune_level=0 --xla_gpu_cuda_data_dir={nvcc}"
    found = os.pathsep.join(filter(None, [str(site.resolve()), os.environ.get("PYTHONPATH")]))
    return os.environ | {
        "CUDA_VISIBLE_DEVICES": "-1",
        "JAX_PLATFORMS": "cpu",
        "PATH": f"{nvcc / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}",
        "PYTHONPATH": found,
        "XLA_FLAGS": flags,
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }


def compile_all(options) -> None:
    """Compiles what is not compiled, each program in a process of its own."""
    for name in options.programs.split(","):
        if name not in PROGRAMS:
            raise SystemExit(f"--programs={name}: choose among {', '.join(PROGRAMS)}")
        if not (options.compiled / f"{name}.json").exists():
            command = [sys.executable, "-m", "benchmarks.h100.one", name, str(options.compiled)]
            subprocess.run(command, check=True, env=environment(options.site))


def main(arguments=None) -> dict:
    """Compiles, writes the report and the table, and exits with status 1 on a broken claim."""
    options = parse(arguments)
    if not options.only_read:
        compile_all(options)
    programs = {
        name: json.loads((options.compiled / f"{name}.json").read_text(encoding="utf-8"))
        for name in PROGRAMS
        if (options.compiled / f"{name}.json").exists()
    }
    report = {
        "what": "compiled for an H100 (target_config.txtpb), not run",
        "compilers": {
            found.name: found.version
            for found in metadata.distributions(path=[str(options.site)])
            if found.name.replace("_", "-") in PACKAGES
        },
        **provenance(options),
        "not_compiled": [name for name in PROGRAMS if name not in programs],
        "programs": programs,
    }
    command = report["environment"]["command"].replace("h100.__main__", "benchmarks.h100")
    report["environment"]["command"] = command
    if options.output:
        options.output.write_text(json.dumps(report, indent=1), encoding="utf-8")
    print(table.markdown(report))
    if broken := claims.broken(programs):
        raise SystemExit("\n".join(broken))
    return report


if __name__ == "__main__":
    main()
