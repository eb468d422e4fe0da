"""What the library imports."""

import ast
import pathlib
import subprocess
import sys

import jaxadv

ROOT = pathlib.Path(jaxadv.__file__).parent
ALLOWED = {"jax", "numpy", "scipy", "flax", "optax", "jaxadv"}
OTHERS = {"torch", "torchax"}  # of jaxadv.interop, and imported when it is used


def imported(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name.split(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield (node.module or "").split(".")[0]


def test_the_library_imports_arrays_and_nothing_that_reads_flags_or_files():
    for path in ROOT.rglob("*.py"):
        allowed = ALLOWED | (OTHERS if path.parent.name == "interop" else set())
        allowed |= {"orbax"} if path.name == "_flax_file.py" else set()  # flax depends on it
        foreign = set(imported(path)) - allowed - set(sys.stdlib_module_names)
        assert not foreign, f"{path.relative_to(ROOT)} imports {foreign}"


def test_importing_the_library_is_light_and_touches_no_configuration():
    code = (
        "import jax, sys; before = dict(jax.config.values); import jaxadv, jaxadv.attacks, "
        "jaxadv.balls, jaxadv.interop, jaxadv.losses, jaxadv.models, jaxadv.objectives, "
        "jaxadv.optim, jaxadv.theory, jaxadv.training; assert dict(jax.config.values) == before; "
        "heavy = {'absl.flags', 'ml_collections', 'tensorflow_datasets', 'tensorflow', 'torch', "
        "'matplotlib', 'experiments'} & set(sys.modules); assert not heavy - {'absl.flags'}, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
