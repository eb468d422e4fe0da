"""The rooms of the house, read from the syntax trees: who imports whom, and where."""

import ast
import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGES = ("jaxadv", "experiments", "theory", "benchmarks")
# What an installation may lack, or what takes seconds to load: imported where it is used.
OPTIONAL = {
    "array_record",
    "huggingface_hub",
    "robustbench",
    "timm",
    "torch",
    "torchattacks",
    "torchax",
    "orbax.checkpoint",
    "tensorboardX",
    "torchvision",
    "foolbox",
    "pyautoattack",
    "tensorflow_datasets",
    "matplotlib",
    "sklearn",
    "scipy.io",
}


def modules():
    """Names of all modules and their files."""
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


FILES = dict(modules())


def is_guarded(node, parents):
    """Whether an import is for type checkers only."""
    while node in parents:
        node = parents[node]
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return True
    return False


def imports(name):
    """(imported module, imported name or None, whether inside a function, line) of a module."""
    tree = ast.parse(FILES[name].read_text(encoding="utf-8"))
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    package = name if FILES[name].name == "__init__.py" else name.rpartition(".")[0]

    def in_function(node):
        while node in parents:
            node = parents[node]
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                return True
        return False

    for node in ast.walk(tree):
        if isinstance(node, ast.Import) and not is_guarded(node, parents):
            for alias in node.names:
                yield alias.name, None, in_function(node), node.lineno
        elif isinstance(node, ast.ImportFrom) and not is_guarded(node, parents):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([base] if base else [])])
            for alias in node.names:
                yield base, alias.name, in_function(node), node.lineno


def target(module, name):
    """The module of ours that an import loads, or None."""
    if name is not None and f"{module}.{name}" in FILES:
        return f"{module}.{name}"
    return module if module in FILES else None


def test_there_is_something_to_read():
    assert len(FILES) > 150 and target("jaxadv", "balls") == "jaxadv.balls"
    rows = {row[:3] for row in imports("jaxadv.attacks._kernel")}
    assert {("jaxadv", "balls", False), ("dataclasses", None, False)} <= rows


def test_no_module_imports_itself_in_a_circle():
    edges = {
        name: {found for module, part, _, _ in imports(name) if (found := target(module, part))}
        - {name}
        for name in FILES
    }
    done, circles = set(), []

    def visit(name, path):
        if name in path:
            circles.append(" -> ".join([*path[path.index(name) :], name]))
        elif name not in done:
            for other in sorted(edges[name]):
                visit(other, [*path, name])
            done.add(name)

    for name in FILES:
        visit(name, [])
    assert not circles


def test_functions_import_optional_packages_only():
    found = [
        f"{FILES[name].relative_to(ROOT)}:{line} imports {module}"
        for name in FILES
        for module, _, inside, line in imports(name)
        if inside and not {module, module.split(".")[0]} & OPTIONAL
    ]
    assert not found, "\n".join(found)


def entry_points():
    """Modules that are run as programs: the files at the top of experiments, and __main__."""
    for name, path in FILES.items():
        if '__name__ == "__main__"' in path.read_text(encoding="utf-8"):
            yield name


def test_no_machinery_imports_an_entry_point():
    programs = set(entry_points())
    assert {"experiments.cifar10", "experiments.evaluate", "experiments.table1"} <= programs
    found = [
        f"{FILES[name].relative_to(ROOT)}:{line} imports {target(module, part)}"
        for name in FILES
        for module, part, _, line in imports(name)
        if target(module, part) in programs
    ]
    assert not found, "\n".join(found)


def test_entry_points_alone_are_at_the_top_of_experiments():
    top = {name for name in FILES if FILES[name].parent == ROOT / "experiments"}
    assert top - {"experiments"} <= set(entry_points())


def test_what_help_imports_is_in_the_standard_library():
    """Python starts with it, whatever was asked for; functions may import more."""
    wanted, seen = ["experiments"], set()
    while wanted:
        parts = wanted.pop().split(".")
        # A module brings the packages that it lies in.
        for name in {".".join(parts[:i]) for i in range(1, len(parts) + 1)} - seen:
            seen.add(name)
            for module, part, inside, _ in imports(name):
                if inside:
                    continue
                if (found := target(module, part)) is not None:
                    wanted.append(found)
                else:
                    assert module.split(".")[0] in sys.stdlib_module_names, f"{name}: {module}"
    assert "experiments.cli.help.show" in seen


@pytest.mark.parametrize("package", PACKAGES[1:])
def test_only_public_names_of_jaxadv_are_used(package):
    found = [
        f"{FILES[name].relative_to(ROOT)}:{line} imports {module}.{part or ''}"
        for name in FILES
        if name.split(".")[0] == package
        for module, part, _, line in imports(name)
        if module.split(".")[0] == "jaxadv"
        and any(step.startswith("_") for step in [*module.split("."), part or ""])
    ]
    assert not found, "\n".join(found)


def test_the_drivers_of_attacks_do_not_ask_which_attack_it_is():
    rooms = [ROOT / "jaxadv/attacks/_driver.py", ROOT / "jaxadv/attacks/_kernel.py"]
    rooms += sorted((ROOT / "jaxadv/attacks/_autoattack").glob("*.py"))
    found = []
    for path in rooms:
        if path.name == "plan.py":  # it names the attacks of each version
            continue
        text = path.read_text(encoding="utf-8")
        found += [
            f"{path.name}: {word}" for word in ("APGD", "FAB", "Square") if word + "(" in text
        ]
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Compare):
                code = ast.unparse(node)
                names = ("'square'", "'apgd", "'fab", ".kind")
                found += [f"{path.name}:{node.lineno} {code}" for part in names if part in code]
    assert not found, "\n".join(found)


def test_private_names_are_used_by_the_tests_of_their_room():
    """And by tests/parity, which holds the same rooms against the reference."""
    found = []
    for path in sorted((ROOT / "tests").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("jaxadv"):
                continue
            for alias in node.names:
                parts = f"{node.module}.{alias.name}".split(".")
                private = next((i for i, part in enumerate(parts) if part.startswith("_")), None)
                if private is None:
                    continue
                room = ROOT.joinpath("tests", *parts[1:private])
                inside = path.parent == room if private == 1 else room in path.parents
                own = path == room.with_name(f"test_{room.name}.py")
                if not (inside or own or path.parent.name == "parity"):
                    found.append(f"{path.relative_to(ROOT)} imports {'.'.join(parts)}")
    assert not found, "\n".join(found)
