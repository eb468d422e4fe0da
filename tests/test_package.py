"""Rules of the packages: what may import what, and the shape of the public interface."""

import ast
import inspect
import pathlib
import subprocess
import sys

import jaxadv
from jaxadv import attacks, balls, losses, objectives, optim, theory

ROOT = pathlib.Path(jaxadv.__file__).parent
ALLOWED = {"jax", "numpy", "scipy", "flax", "optax", "jaxadv"}


def imported(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name.split(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield (node.module or "").split(".")[0]


def test_the_library_imports_arrays_and_nothing_that_reads_flags_or_files():
    for path in ROOT.rglob("*.py"):
        foreign = set(imported(path)) - ALLOWED - set(sys.stdlib_module_names)
        assert not foreign, f"{path.relative_to(ROOT)} imports {foreign}"


def test_importing_the_library_is_light_and_touches_no_configuration():
    code = (
        "import jax, sys; before = dict(jax.config.values); import jaxadv, jaxadv.attacks, "
        "jaxadv.balls, jaxadv.losses, jaxadv.models, jaxadv.objectives, jaxadv.optim, "
        "jaxadv.theory, jaxadv.training; assert dict(jax.config.values) == before; "
        "heavy = {'absl.flags', 'ml_collections', 'tensorflow_datasets', 'tensorflow', 'torch', "
        "'matplotlib', 'experiments'} & set(sys.modules); assert not heavy - {'absl.flags'}, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_random_functions_take_the_key_first_and_options_by_keyword():
    for function in (attacks.pgd, attacks.fgsm, balls.sample):
        names = list(inspect.signature(function).parameters)
        assert names[0] == "key"
    for module in (attacks, balls, losses):
        for name, function in vars(module).items():
            if name.startswith("_") or not inspect.isfunction(function):
                continue
            if not function.__module__.startswith("jaxadv") or name.startswith("check"):
                continue
            parameters = inspect.signature(function).parameters.values()
            for parameter in parameters:
                if parameter.default is not inspect.Parameter.empty:
                    optional = parameter.kind is inspect.Parameter.KEYWORD_ONLY
                    assert optional, f"{module.__name__}.{name}: {parameter.name} must be keyword"


def test_every_public_function_is_documented_with_an_example():
    for module in (attacks, balls, losses, objectives, optim, theory):
        for name, function in vars(module).items():
            public = inspect.isfunction(function) and not name.startswith("_")
            place = getattr(function, "__module__", "")
            if public and place.startswith(module.__name__):
                assert function.__doc__, name
                if name != "pgd_stateful":
                    assert ">>>" in function.__doc__, f"{module.__name__}.{name} has no example"
