"""AutoAttack of a run, and PyTorch files: reports, files, resuming, what is refused."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import data
from experiments import evaluate as entry
from experiments.evaluation import autoattack, evaluate, subjects
from experiments.run.task import load_task
from jaxadv import models
from jaxadv.attacks import AutoAttackResult

STRONG = dict(attack="autoattack", eps=0.3, number=20, verbose=False)


def test_report_of_a_run(finished, tmp_path):
    done = finished("at")
    path = tmp_path / "found.json"
    found = evaluate.evaluate(done.directory.path, **STRONG, save=path)
    task = load_task(done.config)
    clean = evaluate.evaluate(done.directory.path, number=20, num_steps=0, verbose=False)
    assert found["images"] == 20 and found["clean"] == clean["clean"]
    assert found["attack"] == {
        "name": "autoattack", "norm": "linf", "eps": 0.3, "version": "standard",
        "precision": "default",
    }  # fmt: skip
    accuracy = found["accuracy"]
    assert list(accuracy) == ["clean", "apgd-ce", "apgd-t", "fab-t", "square"]
    assert accuracy["clean"] == found["clean"] >= accuracy["square"] == found["robust"]
    assert list(found["accuracy_interval"]) == list(accuracy)
    assert found["accuracy_interval"]["square"] == found["robust_interval"]
    assert sum(found["broken_by"].values()) == round(20 * (1 - found["robust"] / 100))
    assert sum(row["images"] for row in found["classes"]) == 20
    assert json.loads(path.read_text()) == json.loads(json.dumps(found))

    # The saved images belong to the model and to the images.
    result = AutoAttackResult.load(tmp_path / "found.npz")
    subject = subjects.from_run(done.directory.path, "selected", "test").first(20)
    logits = subject.logits_fn()(jnp.asarray(result.images))
    np.testing.assert_array_equal(logits.argmax(1) == task.test.labels[:20], result.robust)
    assert np.abs(result.images - task.test.images[:20] / 255).max() <= 0.3 + 1e-6
    assert (tmp_path / "found.png").exists()

    # The same command goes on: nothing is left to do.
    kept = sorted((tmp_path / "found.progress").glob("*.npz"))
    again = evaluate.evaluate(done.directory.path, **STRONG, save=path)
    assert again["robust"] == found["robust"] and again["evaluations"] == found["evaluations"]
    assert kept and sorted((tmp_path / "found.progress").glob("*.npz")) == kept
    assert again["seconds"] == found["seconds"]


def test_two_checkpoints_compile_once(finished):
    done = finished("at")
    models_ = [subjects.from_run(done.directory.path, c, "test") for c in ("selected", "last")]
    first, second = (jax.tree.flatten(subject.logits_fn()) for subject in models_)
    assert first[1] == second[1] and hash(first[1]) == hash(second[1])


def test_names_of_the_files_say_what_differs(finished):
    subject = subjects.from_run(finished("at").directory.path, "last", "test")
    name = functools.partial(evaluate._autoattack_name, subject)
    own = {"norm": subject.norm, "eps": subject.eps}
    assert name(own, "standard", None, None, "last", "test") == "autoattack-last-test"
    other = name({"norm": "l2", "eps": 0.5}, "plus", 3, 100, "last", "test")
    assert other == "autoattack-last-test-l2-0.5-plus-seed3-first100"
    assert name(own, "standard", None, None, "last", "test", "high") == "autoattack-last-test-high"


@pytest.fixture
def torch_file(tmp_path, monkeypatch):
    """A narrow network, 8 x 8 grey images, and what loads it."""
    build_ = functools.partial(models.build, width=2)
    monkeypatch.setattr(models, "build", build_)
    module = build_("preact_resnet18", num_classes=10, mean=(0.5,), std=(0.25,))
    variables = module.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    models.save_torch(tmp_path / "weights.pt", module, variables)
    return tmp_path / "weights.pt", module, variables


@pytest.mark.slow
def test_torch_file(torch_file, tmp_path):
    path, module, variables = torch_file
    options = dict(arch="preact_resnet18", dataset="digits", number=16, verbose=False)
    options |= dict(mean=(0.5,), std=(0.25,))
    found = evaluate.evaluate(torch=path, **options, num_steps=2, save=tmp_path / "out.json")
    digits = data.load("digits")
    images, labels = digits.test_images[:16] / np.float32(255), digits.test_labels[:16]
    guessed = module.apply(variables, jnp.asarray(images)).argmax(1)
    assert found["clean"] == 100 * np.mean(guessed == labels)
    assert found["arch"] == "preact_resnet18" and found["mean"] == [0.5]
    assert "PGD-2" in evaluate.describe(found)
    # Another normalisation is another network.
    subject = subjects.from_torch(path, "preact_resnet18", "digits", mean=(0.0,), std=(1.0,))
    other = subject.logits_fn()(jnp.asarray(images))
    assert not np.allclose(other, module.apply(variables, jnp.asarray(images)), atol=1e-3)

    subject = subjects.from_torch(path, "preact_resnet18", "digits", mean=(0.5,), std=(0.25,))
    report, result = autoattack.run_autoattack(
        subject.first(3), norm="linf", eps=0.5, verbose=False
    )
    # What it says of an image is what the network says of its adversarial image.
    guessed = module.apply(variables, jnp.asarray(result.images)).argmax(1)
    np.testing.assert_array_equal(result.robust, guessed == labels[:3])
    assert report["robust"] == 100 * np.mean(result.robust)
    assert np.abs(result.images - images[:3]).max() <= 0.5 + 1e-6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(), "give one of a run .--workdir=DIR., a model by name"),
        (
            dict(torch="w.pt", arch="wrn34_10", dataset="digits"),
            r"does not record its image normalization; give --normalization=none\|half\|cifar10",
        ),
        (
            dict(torch="w.pt", arch="wrn34_10", dataset="digits", mean=(0.5,)),
            "give --normalization=.*, or --mean and --std",
        ),
        (
            dict(torch="w.pt", arch="wrn34_10", dataset="digits", normalization="none", std=(1.0,)),
            "give only one",
        ),
        (
            dict(torch="w.pt", arch="wrn34_10", dataset="digits", normalization="cifar"),
            "did you mean 'cifar10'",
        ),
        (dict(workdir=".", normalization="none"), "can only be given with --torch"),
        (dict(torch="w.pt"), "needs --arch .preact_resnet18, wrn34_10. and --dataset"),
        (dict(torch="w.pt", arch="vgg", dataset="digits"), "arch='vgg' is not one of"),
        (
            dict(torch="w.pt", arch="wrn34_10", dataset="digits", images="train"),
            "apply only to runs",
        ),
    ],
)
def test_options_of_torch_files_that_make_no_sense(options, message):
    with pytest.raises(ValueError, match=message):
        evaluate.evaluate(**options)


def test_torch_files_that_do_not_fit(torch_file, tmp_path):
    load = functools.partial(
        evaluate.evaluate, dataset="digits", arch="preact_resnet18", normalization="none"
    )
    with pytest.raises(FileNotFoundError, match="no such file; --torch"):
        load(torch=tmp_path / "nothing.pt")
    with pytest.raises(ValueError, match=r"mean=\(0.5, 0.5\) has 2 numbers; the images have 1"):
        load(torch=torch_file[0], normalization=None, mean=(0.5, 0.5), std=(1.0, 1.0))
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(ValueError, match="text.pt"):
        load(torch=tmp_path / "text.pt")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(attack="autoattak"), "did you mean 'autoattack'"),
        (dict(attack="autoattack", num_steps=5), "num_steps=5 applies only to attack='pgd'"),
        (dict(attack="autoattack", norm="l2"), "give --eps too"),
        (dict(attack="autoattack", version="fast"), "version='fast' is not one of"),
        (dict(number=0), "number=0"),
        (dict(arch="wrn34_10"), "--arch can only be given with --torch"),
    ],
)
def test_options_of_runs_that_make_no_sense(options, message, finished):
    with pytest.raises(ValueError, match=message):
        evaluate.evaluate(finished("at").directory.path, **options, verbose=False)


def test_the_command(finished, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("experiments.run.environment.configure", lambda: None)
    arguments = [f"--workdir={finished('at').directory.path}", "--attack=autoattack", "--eps=0.3"]
    arguments += ["--number=20", f"--output={tmp_path / 'a.json'}"]
    monkeypatch.setattr("sys.argv", ["evaluate.py", *arguments])
    entry.main()
    text = capsys.readouterr().out
    assert "AutoAttack: linf, eps 0.3, standard, float32" in text
    assert f"written to {tmp_path / 'a.json'}, {tmp_path / 'a.npz'}" in text
