"""The examples of docs/interop.md run as they are printed, where their libraries are installed."""

import pathlib
import re

import jax
import numpy as np
import pytest

from jaxadv import attacks

ROOT = pathlib.Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "interop.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^## (.*?)$.*?```python\n(.*?)```", TEXT, re.DOTALL | re.MULTILINE)
EXAMPLES = {title: block for title, block in BLOCKS}
NEEDS = {
    "Flax nnx": (),
    "Haiku": ("haiku",),
    "Equinox": ("equinox",),
    "PyTorch": ("torch",),
    "Our AutoAttack for PyTorch users": ("torch",),
    "Anything else": (),
}


def names():
    """What the page says there is, with an AutoAttack that compiles quickly."""

    class Gray(attacks.Kernel):
        def begin(self, batch):
            return attacks.Search.start(batch)

        def step(self, batch, state, number):
            points = batch.project(0 * state.points + 0.5)
            return state.tried(points, batch.correct(points, number), number)

    rng = np.random.default_rng(0)
    images = jax.numpy.asarray(rng.uniform(size=(3, 8, 8, 1)), "float32")
    labels = jax.numpy.arange(3)
    seen = []

    def short(*arguments, **options):
        assert not set(options) - {"eps", "norm"}
        options |= dict(version="custom", attacks=Gray(num_steps=1), progress=False)
        seen.append(attacks.autoattack(*arguments, **options))
        return seen[-1]

    return dict(jax=jax, images=images, labels=labels, autoattack=short), seen


def test_the_page_is_covered():
    assert set(EXAMPLES) == set(NEEDS) and TEXT.count("```python") == len(NEEDS)


@pytest.mark.parametrize("title", NEEDS)
def test_example(title, tmp_path, monkeypatch, capsys):
    for package in NEEDS[title]:
        pytest.importorskip(package)
    space, seen = names()
    block = EXAMPLES[title]
    if "loader" in block:
        import torch

        from jaxadv.interop import _torch_attack

        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(_torch_attack, "autoattack", space["autoattack"])
        points = torch.from_numpy(np.asarray(space["images"]).transpose(0, 3, 1, 2).copy())
        module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)).eval()
        space |= dict(torch=torch, module=module, loader=[(points, torch.arange(3))])
    exec(compile(block, title, "exec"), space)
    assert len(seen) == 1 and list(seen[0].accuracy) == ["clean", "gray"]
    if "loader" in block:
        assert torch.load("adversarial.pt").shape == (3, 1, 8, 8)
        assert "robust accuracy" in capsys.readouterr().out
