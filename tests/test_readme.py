"""The examples of the README and of the pages in docs run as they are printed."""

import functools
import importlib.util
import pathlib
import re
import shlex

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
}
README = PAGES["README.md"]
BLOCKS = {page: re.findall(r"```python\n(.*?)```", text, re.DOTALL) for page, text in PAGES.items()}
EVALUATION = "docs/evaluation.md"


TUTORIALS = ("evaluate", "train", "explain")


def run(number: int, names: dict, page: str = EVALUATION) -> dict:
    exec(compile(BLOCKS[page][number], f"{page}, example {number}", "exec"), names)
    return names


@pytest.fixture(scope="module")
def function():
    return run(0, {})


def test_there_is_an_example_for_every_kind_of_model():
    assert [len(block.splitlines()) <= 13 for block in BLOCKS[EVALUATION]] == [True] * 5


def test_all_examples_are_run():
    """A page that gains an example gains a test here."""
    counts = {page: len(blocks) for page, blocks in BLOCKS.items() if blocks}
    expected = {"README.md": 1, EVALUATION: 5, "docs/training.md": 2}
    expected["docs/interop.md"] = 6  # tests/interop/test_page.py
    expected |= {f"docs/tutorial-{name}.md": 5 - 2 * (name != "evaluate") for name in TUTORIALS}
    expected |= {"docs/howto-attack.md": 1, "docs/howto-optimizer.md": 2}
    assert counts == expected


def test_convolutions_as_they_are(function):
    names = run(4, run(1, dict(function)))
    adversarial, images = names["adversarial"], names["images"]
    assert 0 < float(abs(adversarial - images).max()) <= 0.1 + 1e-6


def run_all(page: str) -> dict:
    """All examples of a page, one after the other."""
    names: dict = {}
    for number in range(len(BLOCKS[page])):
        run(number, names, page)
    return names


def test_how_to_add_an_attack(capsys):
    result = run_all("docs/howto-attack.md")["result"]
    assert list(result.accuracy) == ["clean", "walk", "apgd-ce"]
    assert 0 < (result.broken_by == "walk").sum() < 32
    assert str(result.evaluations["walk"].forward) in capsys.readouterr().out


@pytest.mark.slow
def test_how_to_use_an_optimizer():
    names = run_all("docs/howto-optimizer.md")
    assert int(names["state"].step) == 40 and names["tx"] is not None


@pytest.mark.slow
def test_the_tutorial_on_evaluating():
    """What its text says about the numbers holds."""
    names = run_all("docs/tutorial-evaluate.md")
    result = names["result"]
    assert names["clean_accuracy"] > 0.9 > names["pgd_accuracy"]
    assert list(result.accuracy) == ["clean", "apgd-ce", "apgd-t", "fab-t", "square"]
    assert not names["suspicious"]
    assert names["low"] < result.robust_accuracy - 0.1 + 0.02 and names["high"] - names["low"] > 0.2


@pytest.mark.slow
def test_the_tutorial_on_training():
    found = run_all("docs/tutorial-train.md")["accuracies"]
    (clean, broken), (robust_clean, robust) = found["ordinary"], found["robust"]
    assert robust > broken + 0.06 and robust_clean > clean - 0.05


@pytest.mark.slow
def test_the_tutorial_on_explaining(capsys):
    names = run_all("docs/tutorial-explain.md")
    shown = re.findall(r"```text\n(.*?)```", PAGES["docs/tutorial-explain.md"], re.DOTALL)
    assert capsys.readouterr().out == "".join(shown) and len(shown) == 3
    assert len(names["kinks"]["l2"].places) == 0 and len(names["kinks"]["linf"].places) == 2
    assert names["attack"].kind == "sphere" and names["attack"].norm <= names["attack"].sharp_bound
    assert not names["attack"].paper_applies
    assert names["largest"]["total"] > names["largest"]["frozen"]


def test_function(function):
    result = function["result"]
    assert result.accuracy["clean"] > 0.8 > result.robust_accuracy > 0.2
    logits = function["logits_fn"](result.images)
    np.testing.assert_array_equal(logits.argmax(1) == function["labels"], result.robust)


@pytest.mark.parametrize("number", [1, 2])
def test_linen_and_nnx(number, function):
    found = run(
        number, {name: function[name] for name in ("jax", "images", "labels", "autoattack")}
    )
    assert found["result"].robust.shape == (64,)
    assert list(found["result"].accuracy) == ["clean", "apgd-ce", "apgd-t", "fab-t", "square"]


def test_pytorch_file(function, tmp_path, monkeypatch):
    import jax
    import jax.numpy as jnp

    from jaxadv import models

    monkeypatch.chdir(tmp_path)
    module = models.preact_resnet18(num_classes=10, width=1, mean=None, std=None)
    variables = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    models.save_torch("weights.pt", module, variables)
    wide = models.preact_resnet18
    monkeypatch.setattr(models, "preact_resnet18", functools.partial(wide, width=1))
    images = np.random.default_rng(0).uniform(size=(2, 32, 32, 3)).astype(np.float32)
    labels = np.asarray(jax.jit(module.apply)(variables, images).argmax(1)).astype(np.int32)
    short = dict(version="custom", attacks=["apgd-ce"], num_steps=3)  # 18 layers compile slowly
    attack = functools.partial(function["autoattack"], **short)
    names = {"jax": jax, "autoattack": attack, "images": images, "labels": labels}
    found = run(3, names)
    assert found["result"].accuracy["clean"] == 1


def test_the_attack_of_the_readme(monkeypatch):
    from jaxadv import models

    wide = models.preact_resnet18
    monkeypatch.setattr(models, "preact_resnet18", lambda width: wide(width=width // 8))
    found = run(0, {}, "README.md")
    distance = abs(np.asarray(found["adversarial"]) - 0.5)
    assert 0 < distance.max() <= 8 / 255 + 1e-6


def test_your_own_loop():
    """The loop moves towards the weights that made the targets; AWP follows it."""
    names = run(0, {}, "docs/training.md")
    w, batch = names["w"], (names["x"][0], names["batches"][1][0])
    assert names["loss"](w, batch) < names["loss"](0 * w, batch)
    value, gradient = (run(1, names, "docs/training.md")[name] for name in ("value", "gradient"))
    assert value.shape == () and gradient.shape == (3, 1) and value > 0


# Commands


def commands() -> list[tuple[str, str, list[str]]]:
    """(page, module, its arguments) of every ``python -m`` on the pages."""
    found = []
    for page, text in PAGES.items():
        code = re.findall(r"^```\w*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
        lines = [line for block in code for line in block.replace("\\\n", " ").splitlines()]
        lines += [" ".join(words.split()) for words in re.findall(r"(?<!`)`([^`]+)`(?!`)", text)]
        for line in lines:
            words = shlex.split(line.partition(" #")[0]) if "python -m " in line else []
            # After "--", a launcher is given another command.
            for command in " ".join(words).split(" -- "):
                if "-m" in (part := command.split()):
                    place = part.index("-m")
                    found.append((page, part[place + 1], part[place + 2 :]))
    return found


def test_commands_are_found():
    modules = {module for _, module, _ in commands()}
    assert {"experiments.evaluate", "experiments.table1", "theory.claims"} <= modules
    assert len(commands()) > 25


@pytest.mark.parametrize(("page", "module", "arguments"), commands())
def test_every_command_exists_and_knows_its_flags(page, module, arguments):
    module = module.replace("DATASET", "cifar10")
    assert importlib.util.find_spec(module), f"{page}: no {module}"
    [text] = [p.read_text() for p in ROOT.glob(f"experiments/**/{module}.txt")] or [None]
    if text is None:  # the notebooks take no options
        assert not arguments and module.startswith("theory.notebooks.")
        return
    for argument in arguments:
        flag = argument.partition("=")[0]
        if flag.startswith("--config."):
            assert f"\n    {flag.removeprefix('--config.')} " in text, f"{page}: {argument}"
        elif flag.startswith("--"):
            known = re.split(r"[\s\[\],=]+", text)
            spellings = {flag, flag.replace("_", "-"), flag.replace("-", "_").replace("__", "--")}
            assert spellings & set(known), f"{page}: {module} has no {flag}"


def test_every_configuration_and_target_exists():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for page, text in PAGES.items():
        for name in re.findall(r"configs/(\w+)\.py", text):
            if name != "METHOD":
                assert (ROOT / "experiments" / "configs" / f"{name}.py").is_file(), (page, name)
        for target in re.findall(r"(?:^|`)make ([a-z0-9-]+)", text, re.MULTILINE):
            assert f"\n{target}:" in makefile, (page, target)
    listed = set(re.findall(r"`(\w+)`", PAGES["docs/training.md"]))
    files = {path.stem for path in (ROOT / "experiments" / "configs").glob("*.py")}
    assert files <= listed | {"__init__"}


def test_the_readme_stays_short():
    assert len(README.splitlines()) < 150
