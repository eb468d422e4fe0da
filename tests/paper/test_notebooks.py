"""The notebooks run from the first cell to the last, and their assertions hold."""

import pathlib
import re

import pytest

NOTEBOOKS = pathlib.Path(__file__).parents[2] / "theory" / "notebooks"
ON_A_RUN = "lipschitz_attack"


def cells(name: str) -> list[tuple[bool, str]]:
    """Cells of a percent script: whether it is text, and its source."""
    text = (NOTEBOOKS / f"{name}.py").read_text(encoding="utf-8")
    parts = re.split(r"^# %%(.*)$", text, flags=re.MULTILINE)
    assert re.fullmatch(r'""".+"""\s*', parts[0])
    kinds, sources = parts[1::2], parts[2::2]
    return [("[markdown]" in kind, source) for kind, source in zip(kinds, sources, strict=True)]


def execute(name: str) -> dict:
    space = {"__name__": "__main__"}
    for number, (is_text, source) in enumerate(cells(name)):
        if not is_text:
            exec(compile(source, f"{name}.py, cell {number}", "exec"), space)
    return space


NAMES = sorted(path.stem for path in NOTEBOOKS.glob("*.py"))


def test_names():
    assert NAMES == ["attack_jacobian", "entropy_sgd", "l2_against_linf", "lipschitz_attack"]


@pytest.mark.parametrize("name", NAMES)
def test_text_and_code_alternate(name):
    found = cells(name)
    assert [is_text for is_text, _ in found[::2]] == [True] * len(found[::2])
    assert not any(is_text for is_text, _ in found[1::2])
    for is_text, source in found:
        lines = [line for line in source.splitlines() if line]
        assert lines and (not is_text or all(line.startswith("#") for line in lines))


@pytest.mark.parametrize(
    "name",
    ["entropy_sgd", "l2_against_linf", pytest.param("attack_jacobian", marks=pytest.mark.slow)],
)
def test_runs(name, capsys):
    execute(name)
    assert len(capsys.readouterr().out.splitlines()) >= 3


def test_without_a_run_it_names_the_command(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKDIR", str(tmp_path / "missing"))
    with pytest.raises(FileNotFoundError, match="make reproduce"):
        execute(ON_A_RUN)


@pytest.mark.slow
def test_on_a_run(tmp_path, monkeypatch, capsys):
    from experiments import settings
    from experiments.run import train

    config = settings.load_config("at", "smoke", "digits")
    config.unlock()
    small = dict(model="mlp", width=16, train_size=120, test_size=50, selection_size=40)
    for name, value in (small | dict(batch_size=24, num_epochs=2, lr_drops=(0.5,))).items():
        config[name] = value
    config.eval.batch_size = 50
    train.train_and_evaluate(settings.resolve(config, "digits"), tmp_path / "run")
    monkeypatch.setenv("WORKDIR", str(tmp_path / "run"))
    space = execute(ON_A_RUN)
    assert len(space["found"]) == 8
    assert "learning rate 0.1" in capsys.readouterr().out
