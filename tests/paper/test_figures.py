"""The figures' commands: every check holds, files and data are there, wrong surfaces fail."""

import json

import numpy as np
import pytest

from tests.helpers.arrays import load_arrays

pytest.importorskip("matplotlib")

from PIL import Image

from jaxadv import theory
from theory import style, surfaces
from theory.figures import __main__ as figures
from theory.figures import fig2, fig4, fig5


def report(folder, name):
    return json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ["fig1", "fig4"])
def test_figure(tmp_path, name, capsys):
    assert figures.main([name, f"--output={tmp_path}", "--points=21"]) == 0
    for suffix in (".png", ".pdf", ".npz", ".json"):
        assert (tmp_path / f"{name}{suffix}").stat().st_size > 500
    found = report(tmp_path, name)
    assert found["holds"]
    assert len(found["checks"]) >= 10
    with Image.open(tmp_path / f"{name}.png") as picture:
        assert picture.info["dpi"] == pytest.approx((200, 200), abs=0.1)
    assert "checks hold" in capsys.readouterr().out


_HEAVY_MARKS = (("fig2", 5), ("fig5", 8))


@pytest.mark.parametrize(
    ("name", "marks"),
    [("fig4", 4), *(pytest.param(*case, marks=pytest.mark.slow) for case in _HEAVY_MARKS)],
)
def test_third_axes_are_named_and_marks_explained(tmp_path, monkeypatch, name, marks):
    module, drawn = {"fig2": fig2, "fig4": fig4, "fig5": fig5}[name], []
    monkeypatch.setattr(module, "_checks", lambda *_: [])
    monkeypatch.setattr(style, "write", lambda figure, *_: drawn.append(figure))
    module.make(tmp_path, mode="exact", gamma=1.0, points=5)
    [figure] = drawn
    surfaces_ = [axes for axes in figure.axes if hasattr(axes, "get_zlabel")]
    assert len(surfaces_) >= 2 and all("loss $" in axes.get_zlabel() for axes in surfaces_)
    assert len(figure.legends[0].get_texts()) == marks


@pytest.mark.slow
@pytest.mark.parametrize(("name", "mode"), [("fig2", "exact"), ("fig2", "pgd"), ("fig5", "exact")])
def test_heavy_figure(tmp_path, name, mode):
    assert figures.main([name, f"--output={tmp_path}", f"--mode={mode}"]) == 0
    found = report(tmp_path, name)
    assert found["holds"]
    assert found["settings"]["points"] == 81


def test_data_of_figure_4_are_the_losses(tmp_path):
    figures.main(["fig4", f"--output={tmp_path}", "--points=5"])
    data = load_arrays(tmp_path / "fig4.npz")
    points, labels = theory.toy_dataset()
    for norm in ("l2", "linf"):
        theta = np.array([data["axis"][3], data["axis"][1]])
        expected = theory.toy_dataset_loss(theta, points, labels, norm=norm)
        np.testing.assert_allclose(data[norm][3, 1], expected, rtol=1e-14)


def test_figure_2_detects_a_wrong_surface():
    """The checks are computed from the surfaces, so a wrong one has to fail them."""
    axis = np.linspace(-2, 2, 9)
    data = {
        f"{model}_{norm or 'clean'}": surfaces.on_grid(surfaces.toy_loss(model, norm), axis)
        for model in ("linear", "swish")
        for norm in (None, "l2", "linf")
    }
    smoothed = {}
    for norm in ("l2", "linf"):
        smoothed[norm] = theory.local_entropy_grid(
            surfaces.toy_loss("linear", norm), [axis, axis], gamma=1.0, num_nodes=9
        )
        data[f"smoothed_{norm}"] = smoothed[norm].smoothed
    golden = [c for c in fig2._checks(axis, data, smoothed, "exact", 1.0) if c.source == "K.2"]
    assert all(check.holds for check in golden)
    data["linear_l2"], data["linear_linf"] = data["linear_linf"], data["linear_l2"]
    wrong = [c for c in fig2._checks(axis, data, smoothed, "exact", 1.0) if not c.holds]
    assert {c.source for c in wrong} >= {"K.2"}


def test_checks_have_teeth():
    assert style.equals("x", 1.0, 1.1, 0.2, "").holds
    assert not style.equals("x", 1.0, 1.1, 0.05, "").holds
    assert not style.at_most("x", np.float64(1.1), 1.0, "").holds
    assert not style.at_least("x", 0.9, np.float64(1.0), "").holds
    assert not style.equals("x", float("nan"), 1.0, 1.0, "").holds
    assert fig5.argmin(np.array([0.0, 1.0]), np.array([[1.0, 0.0], [2.0, 3.0]])) == (0.0, 1.0)


def test_gradient_lipschitz_estimate_tells_kinks_from_curvature():
    for points, kinked in ((41, 20.0), (81, 40.0)):
        axis = np.linspace(-2, 2, points)
        spacing = axis[1] - axis[0]
        smooth = np.add.outer(1.5 * axis**2, axis)
        np.testing.assert_allclose(
            surfaces.gradient_lipschitz(smooth[1:-1], spacing), 3.0, rtol=0.51
        )
        rough = np.add.outer(np.abs(axis), axis)
        np.testing.assert_allclose(surfaces.gradient_lipschitz(rough, spacing), kinked / 2)


@pytest.mark.parametrize("option", ["--gamma=-1", "--gamma=nan", "--points=4", "--mode=fgsm"])
def test_misuse(option, capsys):
    with pytest.raises(SystemExit):
        figures.main(["fig1", option])
    assert option.split("=")[0] in capsys.readouterr().err
