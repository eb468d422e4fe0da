"""The rooms of experiments: what imports what."""

import ast
import functools
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "experiments"
# Imported by what needs them, because they are heavy or need not be installed.
LATE = {"matplotlib", "torch", "tensorflow_datasets", "PIL", "scipy", "sklearn", "tqdm"}


def name_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}
ENTRIES = {
    name for name, path in MODULES.items() if '__name__ == "__main__"' in path.read_text()
} | {"experiments.data.__main__"}


def targets(node, module):
    """The modules that an import statement of a module names."""
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names}
    base = node.module or ""
    if node.level:
        is_package = MODULES[module].name == "__init__.py"
        parts = module.split(".")
        parts = parts[: len(parts) - node.level + is_package]
        base = ".".join([*parts, *filter(None, [node.module])])
    found = {f"{base}.{alias.name}" for alias in node.names}
    return {name if name in MODULES else base for name in found}


@functools.cache
def imports(module):
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    kinds = ast.Import | ast.ImportFrom
    inside = {
        id(node): node
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.Lambda)
        for node in ast.walk(function)
        if isinstance(node, kinds)
    }
    everywhere = [node for node in ast.walk(tree) if isinstance(node, kinds)]
    of = lambda nodes: {name for node in nodes for name in targets(node, module)}
    return of(node for node in everywhere if id(node) not in inside), of(inside.values())


def test_there_is_no_import_circle():
    done, path = set(), []

    def visit(module):
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module in done:
            return
        path.append(module)
        for other in imports(module)[0] & MODULES.keys():
            visit(other)
        path.pop()
        done.add(module)

    for module in MODULES:
        visit(module)
    assert done == set(MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_only_heavy_packages_are_imported_inside_functions(module):
    late = {name.split(".")[0] for name in imports(module)[1]}
    assert late <= LATE, late - LATE


@pytest.mark.parametrize("module", MODULES)
def test_nothing_imports_an_entry_point(module):
    assert not set.union(*imports(module)) & ENTRIES


def test_entry_points_alone_are_at_the_top():
    top = {name for name in MODULES if name.count(".") == 1 and MODULES[name].parent == PACKAGE}
    assert top <= ENTRIES and "experiments.cifar10" in top


def test_what_help_imports_is_in_the_standard_library():
    """Python starts with it, whatever was asked for."""
    wanted, seen = ["experiments"], set()
    while wanted:
        module = wanted.pop()
        # A module brings the packages that it lies in.
        parts = module.split(".")
        for name in {".".join(parts[:i]) for i in range(1, len(parts) + 1)} - seen:
            seen.add(name)
            for other in imports(name)[0]:
                if other in MODULES:
                    wanted.append(other)
                else:
                    assert other.split(".")[0] in sys.stdlib_module_names, f"{name}: {other}"
    assert "experiments.cli.help.show" in seen
