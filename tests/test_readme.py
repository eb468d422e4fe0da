"""The README's Python examples run, and the files and modules that it names exist."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_python_example_runs(number):
    scope = {}
    exec(BLOCKS[number], scope)
    adversarial, images = scope["adversarial"], scope["images"]
    assert abs(adversarial - images).max() <= 8 / 255 + 1e-6


def test_commands_name_modules_and_configs_that_exist():
    modules = set(re.findall(r"python -m ([\w.]+)", README))
    assert modules
    for module in modules:
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), module
    for config in set(re.findall(r"configs/(\w+)\.py", README)):
        assert (ROOT / "experiments" / "configs" / f"{config}.py").is_file(), config


def test_targets_of_make_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for text in (README, (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")):
        for target in re.findall(r"^make ([\w-]+)", text, re.MULTILINE):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
