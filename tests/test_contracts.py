"""What every public name promises, asked of all of them: the modules say which those are."""

import importlib
import inspect
import pkgutil
import re

import pytest

import jaxadv

# Words that say what shape an array has, or that it has none.
SHAPES = re.compile(r"shape|\(\w+,(?: ?\w+,?)*\)|scalar|pytree|per example|structure|like ")


def public_modules():
    """The package and every module without an underscore in its path."""
    yield jaxadv
    for found in pkgutil.walk_packages(jaxadv.__path__, "jaxadv."):
        if not any(part.startswith("_") for part in found.name.split(".")):
            yield importlib.import_module(found.name)


def public_names():
    """(name, object) of all functions and classes of ours that a public module gives."""
    for module in public_modules():
        for name, value in vars(module).items():
            ours = getattr(value, "__module__", "").startswith("jaxadv")
            if ours and not name.startswith("_") and callable(value):
                # A class or function that a module imports for its own use has another home.
                if module is jaxadv or value.__module__.startswith(module.__name__):
                    yield f"{module.__name__}.{name}", value


NAMES = dict(public_names())
FUNCTIONS = {name: f for name, f in NAMES.items() if inspect.isroutine(f)}
CLASSES = {name: c for name, c in NAMES.items() if inspect.isclass(c)}


def parameters(function):
    return list(inspect.signature(function).parameters.values())


def documentation(function):
    """The docstring, with that of the function whose arguments it says it takes."""
    doc = inspect.getdoc(function)
    other = re.search(r"For arguments, see `(\w+)`|\*\*options: (?:see|.* of) .*`(\w+)`", doc)
    if other is None:
        return doc
    name = other[1] or other[2]
    same_module = inspect.getmodule(function)
    return doc + documentation(getattr(same_module, name))


def test_the_whole_interface_is_found():
    wanted = {
        "jaxadv.attacks.autoattack",
        "jaxadv.attacks.Kernel",
        "jaxadv.balls.project",
        "jaxadv.models.load_torch",
        "jaxadv.optim.entropy_sgd",
        "jaxadv.theory.attack_jacobian",
        "jaxadv.training.Program",
    }
    assert wanted <= set(NAMES) and len(FUNCTIONS) > 80 and len(CLASSES) > 40


@pytest.mark.parametrize("name", NAMES)
def test_is_documented(name):
    doc = inspect.getdoc(NAMES[name])
    assert doc and (doc[0].isupper() or doc[0].isdigit() or doc[0] in "`:")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_has_an_example(name):
    assert ">>>" in FUNCTIONS[name].__doc__


@pytest.mark.parametrize("name", FUNCTIONS)
def test_states_what_every_parameter_is(name):
    doc, missing = documentation(FUNCTIONS[name]), []
    if len(parameters(FUNCTIONS[name])) > 1 and "Args:" not in doc:
        missing = ["Args:"]
    for parameter in parameters(FUNCTIONS[name]):
        if not re.search(rf"\b{parameter.name}\b", doc):
            missing.append(parameter.name)
    assert not missing


@pytest.mark.parametrize("name", FUNCTIONS)
def test_states_shapes_of_arrays(name):
    arrays = [p for p in parameters(FUNCTIONS[name]) if "Array" in str(p.annotation)]
    assert not arrays or SHAPES.search(documentation(FUNCTIONS[name]))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_takes_its_key_first(name):
    names = [p.name for p in parameters(FUNCTIONS[name]) if p.kind is not p.KEYWORD_ONLY]
    assert "key" not in names[1:]


# What a function is about may have a default and stand without its name, as in optax and flax.
SUBJECTS = {"learning_rate", "num_classes", "carry", "x", "y"}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_takes_options_by_keyword(name):
    late = [
        p.name
        for p in parameters(FUNCTIONS[name])
        if p.default is not p.empty and p.kind is not p.KEYWORD_ONLY and p.name not in SUBJECTS
    ]
    assert not late
