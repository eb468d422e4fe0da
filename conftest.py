"""Compiler flags of tests and doctests: compiling is most of their time."""

import os

from jaxlib.version import __version_info__

# LLVM's optimizations are not what is tested.
_flags = ["--xla_backend_optimization_level=0"]
if __version_info__ < (0, 11):  # later ones may have dropped these, and an unknown flag is fatal
    # Fusions by the older emitters, and one LLVM module per program: half the compile time.
    _flags += ["--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1"]
os.environ.setdefault("XLA_FLAGS", " ".join(_flags))
