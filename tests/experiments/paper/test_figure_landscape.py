"""Figure 7: the landscape is that of the adversarial loss, and the numbers beside it hold."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import fig7
from experiments.paper import curves, landscape_figure
from experiments.paper.landscape import Landscape, Options
from experiments.run import build
from experiments.run.directory import RunDirectory
from experiments.run.task import load_task
from jaxadv import attacks, losses
from tests.helpers.tiny_runs import accuracies, parts, tiny

SMALL = Options(number=24, num_steps=3)


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("experiments.run.environment.configure", lambda: None)


@pytest.fixture(scope="module")
def landscape(finished):
    return Landscape(finished("at").directory.path, SMALL)


def command(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["fig7.py", *map(str, arguments)])
    fig7.main()


def adversarial_loss(done, params, images, labels):
    """Cross-entropy at PGD images, without the code of the figure."""
    apply_fn = build.make_apply(build.build_model(done.config, load_task(done.config).dataset))
    _, statistics = parts(done.directory.selected, done.config)
    logits_fn = lambda x: apply_fn(params, statistics, x, False)[0]
    images, labels = jnp.asarray(images, jnp.float32) / 255, jnp.asarray(labels)
    evaluation = done.config.eval
    attack = {"norm": "linf", "eps": evaluation.eps, "step_size": evaluation.step_size}
    adversarial = attacks.pgd(
        SMALL.key(1), logits_fn, images, labels, num_steps=SMALL.num_steps, **attack
    )
    return float(losses.cross_entropy(logits_fn(adversarial), labels).mean())


def test_every_point_is_attacked_anew(landscape, finished):
    done = finished("at")
    found = landscape.line([-1.0, 0.0, 0.5], draws=1)
    params, _ = parts(done.directory.selected, done.config)
    direction = landscape.direction(0)["params"]
    for name in ("train", "test"):
        images, labels = (part[:24] for part in getattr(load_task(done.config), name))
        for place, alpha in enumerate((-1.0, 0.0, 0.5)):
            moved = jax.tree.map(lambda p, d, a=alpha: p + a * d, params, direction)
            expected = adversarial_loss(done, moved, images, labels)
            assert found[name]["loss"][0, place] == pytest.approx(expected, rel=1e-4)


def test_the_direction_has_the_norms_of_the_filters(landscape):
    direction, other = landscape.direction(0)["params"], landscape.direction(1)["params"]
    pairs = zip(jax.tree.leaves(direction), jax.tree.leaves(landscape.subject.params), strict=True)
    for d, p in pairs:
        if p.ndim > 1:
            axes = tuple(range(p.ndim - 1))
            np.testing.assert_allclose(
                np.sqrt(np.sum(np.square(d), axes)), np.sqrt(np.sum(np.square(p), axes)), rtol=1e-4
            )
        else:
            assert not np.any(d)
    kernels = [leaf for leaf in jax.tree.leaves(direction) if leaf.ndim > 1]
    others = [leaf for leaf in jax.tree.leaves(other) if leaf.ndim > 1]
    assert not any(np.allclose(a, b) for a, b in zip(kernels, others, strict=True))


def test_sharpness_is_an_increase_that_a_point_of_the_ball_has(landscape, finished):
    found = landscape.sharpness(0.05, num_starts=1, num_steps=4)
    done = finished("at")
    params, _ = parts(done.directory.selected, done.config)
    size = np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(params)))
    assert found["radius"] == pytest.approx(0.05 * size, rel=1e-5)
    images, labels = (part[:24] for part in load_task(done.config).train)
    assert found["loss"] == pytest.approx(adversarial_loss(done, params, images, labels), rel=1e-4)
    # An early-stopped network is no minimum of these few images: the gradient leads.
    assert found["sharpness"] >= 0.5 * found["first_order"] > 0
    assert found["sharpness"] > found["sharpness_half_radius"] > 0
    increases = [found["sharpness"], found["sharpness_half_radius"]]
    assert found["order"] == pytest.approx(np.log2(increases[0] / increases[1]), abs=1e-3)
    expected = max(found["largest_eigenvalue_attack_frozen"], 0) * found["radius"] ** 2 / 2
    assert found["quadratic_attack_frozen"] == pytest.approx(
        expected / (1 + found["loss"]), rel=1e-4
    )


def test_the_figure(monkeypatch, tmp_path, finished, capsys):
    runs = [finished(method).directory.path for method in ("at", "at_ensgd")]
    options = ("--number=24", "--points=3", "--num-steps=3", "--draws=2", "--radius=0")
    command(monkeypatch, "--workdir", *runs, *options, "--output=out")
    found = json.loads((tmp_path / "out/fig7.json").read_text())
    assert found["alphas"] == [-1, 0, 1] and list(found["landscape"]) == ["AT", "AT+EnSGD"]
    loss = np.array(found["landscape"]["AT"]["test"]["loss"])
    assert loss.shape == (2, 3) and loss[0, 1] == loss[1, 1] and loss[0, 0] != loss[1, 0]
    assert found["images"] == {"train": 24, "test": 24} and found["sharpness"] == {}
    assert found["runs"][0]["attack"]["num_steps"] == 3 and found["options"]["seed"] == 0
    assert (tmp_path / "out/fig7.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "out/fig7.pdf").read_bytes().startswith(b"%PDF")
    assert "out/fig7.pdf" in capsys.readouterr().out


def test_the_plane(monkeypatch, tmp_path, finished, landscape):
    run = finished("at").directory.path
    options = ("--number=24", "--points=3", "--num-steps=3", "--radius=0", "--two-dimensional")
    command(monkeypatch, "--workdir", run, *options, "--output=out")
    found = json.loads((tmp_path / "out/fig7-2d.json").read_text())["landscape"]["AT"]["train"]
    loss = np.array(found["loss"])
    assert loss.shape == (3, 3)
    line = landscape.line([-1.0, 0.0, 1.0], draws=2)["train"]["loss"]
    np.testing.assert_allclose(loss[:, 1], line[0], rtol=1e-5)
    np.testing.assert_allclose(loss[1, :], line[1], rtol=1e-5)
    assert (tmp_path / "out/fig7-2d.png").read_bytes().startswith(b"\x89PNG")


def test_the_centre_is_the_evaluation_of_the_checkpoint(landscape, finished):
    """With the evaluation's number of steps the accuracy at alpha = 0 is the known one."""
    done = finished("at")
    five = Landscape(done.directory.path, SMALL._replace(num_steps=5, number=50))
    accuracy = 100 * five.line([0.0], draws=1)["test"]["accuracy"][0, 0]
    task = load_task(done.config)
    _, robust = accuracies(done.config, done.directory.selected, *task.test, SMALL.key(1))
    assert accuracy == pytest.approx(robust, abs=1e-4)


def test_missing_runs_are_listed(monkeypatch, capsys):
    with pytest.raises(SystemExit) as exit_:
        command(monkeypatch, "--scale=laptop", "--seed=2", "--partial")
    text = capsys.readouterr().err
    assert exit_.value.code == 2 and text.startswith("error: 4 of the 4 runs for fig7 are missing")
    assert text.count("--config.seed=2") == 4


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--points=4", "--points=4 must be odd"),
        ("--points=1", "--points=1"),
        ("--points=0", "--points=0"),
        ("--reach=0", "--reach=0"),
        ("--radius=-1", "--radius=-1"),
        ("--number=-3", "--number=-3"),
        ("--number=0", "--number=0"),
        ("--draws=0", "--draws=0"),
        ("--seed=-1", "--seed=-1"),
        ("--checkpoint=first", "is not one of selected, last"),
    ],
)
def test_mistakes(monkeypatch, capsys, argument, message):
    with pytest.raises(SystemExit) as exit_:
        command(monkeypatch, argument)
    assert exit_.value.code == 2 and message in capsys.readouterr().err


def test_two_runs_of_one_name_are_refused(monkeypatch, tmp_path, capsys):
    for name in ("a", "b"):
        RunDirectory(tmp_path / name).open(tiny(), needed_bytes=1)
    monkeypatch.setattr(landscape_figure, "Landscape", _Nothing)
    with pytest.raises(SystemExit):
        command(monkeypatch, "--workdir", "a", "b", "--radius=0")
    assert "b: another run is also 'AT'" in capsys.readouterr().err


class _Nothing:
    """A landscape that measures nothing."""

    def __init__(self, *_):
        self.subjects = {}
        self.subject = type("Subject", (), {"record": {}, "norm": "linf", "eps": 0.1, "pgd": {}})

    def line(self, *_):
        return {}


def test_lines_are_those_of_table_1():
    found = curves.members(landscape_figure.LINES, "laptop", "digits", None, 1)
    assert [member.cell.method for member in found] == ["at", "at_ensgd", "awp", "awp_ensgd"]
