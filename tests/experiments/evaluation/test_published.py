"""Evaluation of a model by name: what is checked before the attack, and what is written after."""

import dataclasses
import json
import sys
import types
from typing import Any

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import data
from experiments import evaluate as entry_point
from experiments.evaluation import evaluate, published, weights
from experiments.run import accuracy
from jaxadv import models
from jaxadv.models import zoo

NUMBER = 40


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A small network in the registry, its file, and images of which it classifies 30 of 40."""
    base = zoo.entry("Carmon2019Unlabeled")
    options = {"width": 2, "blocks": (1, 1)}
    module = models.build(
        "preact_resnet18", num_classes=10, mean=(0.5,) * 3, std=(0.25,) * 3, **options
    )
    variables = module.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    models.save_torch(tmp_path / "weights.pt", module, variables)
    images = np.random.default_rng(0).integers(0, 256, (NUMBER, 32, 32, 3), np.uint8)
    logits: Any = module.apply(variables, jnp.asarray(images / np.float32(255)))
    labels = np.array(logits.argmax(1), np.int32)
    labels[30:] = (labels[30:] + 1) % 10
    names = tuple("abcdefghij")
    dataset = data.Dataset("cifar10", images, labels, images, labels, names, "test", "none")
    loaded = []
    monkeypatch.setattr(data, "load", lambda name, folder=None: loaded.append(name) or dataset)
    monkeypatch.setattr(data, "ensure", lambda *args, **kwargs: None)
    shapes = {n: a.shape for n, a in models.to_torch_state_dict(module, variables).items()}
    found = dataclasses.replace(
        base, id="Tiny2026Network", images=NUMBER, clean=75.0, autoattack=40.0, best_known=40.0,
        architecture="preact_resnet18", options=options, mean=(0.5,) * 3, std=(0.25,) * 3,
        tensors=zoo.fingerprint(shapes),
    )  # fmt: skip
    registered, source = [found], zoo.source()
    monkeypatch.setattr(zoo._entries, "_registry", lambda: (source, tuple(registered)))

    def publish(**figures):
        registered[:] = [dataclasses.replace(found, **figures)]

    return types.SimpleNamespace(path=tmp_path / "weights.pt", publish=publish, loaded=loaded)


class Reached(Exception):
    """The attack began."""


@pytest.fixture
def attacked(monkeypatch):
    """Ends where AutoAttack would begin."""

    def begins(*args, **options):
        raise Reached

    monkeypatch.setattr(evaluate.autoattack, "autoattack", begins)


@pytest.fixture
def short(monkeypatch):
    """AutoAttack of three steps."""
    whole = evaluate.autoattack.autoattack

    def run(*args, version, **options):
        assert version == "standard"
        return whole(*args, version="custom", attacks=["apgd-ce"], num_steps=3, **options)

    monkeypatch.setattr(evaluate.autoattack, "autoattack", run)


def by_name(tiny, **options):
    given: dict[str, Any] = dict(model="Tiny2026Network", weights=tiny.path)
    given |= dict(attack="autoattack", verbose=False)
    return evaluate.evaluate(**given | options)


def test_another_clean_accuracy_stops_before_the_attack(tiny, attacked):
    tiny.publish(clean=97.5)
    with pytest.raises(published.UnlikelyAccuracy) as caught:
        by_name(tiny)
    message = str(caught.value)
    assert "\n" not in message
    for part in (
        "75.00 [59.8, 85.8] % on the first 40 images, but 97.50 % is published",
        "normalization (the registry has mean (0.5, 0.5, 0.5) and std (0.25, 0.25, 0.25))",
        "pre-processing (32 pixels)",
        "other weights",
        "--check-clean=false",
    ):
        assert part in message
    with pytest.raises(Reached):
        by_name(tiny, check_clean=False)


def test_few_images_are_checked_on_all_the_same(tiny, attacked, capsys):
    with pytest.raises(Reached):
        by_name(tiny, number=3, verbose=True)
    assert "on the first 40 images: 75.00" in capsys.readouterr().out
    tiny.publish(clean=97.5)
    with pytest.raises(published.UnlikelyAccuracy, match="on the first 40 images, but 97.50"):
        by_name(tiny, number=3)


def test_other_weights_stop(tiny, attacked):
    module = zoo.build(published.find("Tiny2026Network"))
    variables = module.init(jax.random.key(1), jnp.zeros((1, 32, 32, 3)))
    models.save_torch(tiny.path, module, variables)
    with pytest.raises(published.UnlikelyAccuracy, match="published for Tiny2026Network"):
        by_name(tiny)


def test_weights_may_be_a_file_of_flax_but_not_of_another_network(tiny, tmp_path, attacked):
    module = zoo.build(published.find("Tiny2026Network"))
    path = tmp_path / "weights.msgpack"
    path.write_bytes(flax.serialization.to_bytes(models.load(tiny.path, module)))
    with pytest.raises(Reached):
        by_name(tiny, weights=path)
    path = tmp_path / "other.pt"
    models.save_torch(path, *_other())
    with pytest.raises(ValueError, match="weights='.*other.pt' for Tiny2026Network: other.pt: "):
        by_name(tiny, weights=path)


def _other():
    module = models.mlp(10, hidden=(2,))
    return module, module.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))


@pytest.mark.slow
def test_the_published_accuracy_goes_on(tiny, short, tmp_path):
    report = by_name(tiny, save=tmp_path / "out" / "report.json")
    assert report["clean"] == 75 and report["check"]["probability"] == 1
    assert report["attack"]["eps"] == 8 / 255 and report["attack"]["norm"] == "linf"
    file = tmp_path / "out" / "model_info" / "cifar10" / "Linf" / "Tiny2026Network.json"
    assert str(file) in report["files"]
    info = json.loads(file.read_text())
    assert (info["eps"], info["clean_acc"]) == ("8/255", "75.00")
    assert info["autoattack_acc"] == f"{report['robust']:.2f}"
    assert info["dataset"] == "cifar10" and info["footnote"] is None
    assert info["architecture"] == "WideResNet-28-10" and info["additional_data"] is True
    text = evaluate.describe(report)
    low, high = report["robust_interval"]
    assert f"{report['robust']:.2f} [{low:.1f}, {high:.1f}]" in text
    assert "after apgd-ce" in text and "after clean" in text
    assert "published" in text and "40.00" in text
    classes = [line for line in text.splitlines() if line[:2] in {f"{c} " for c in "abcdefghij"}]
    assert len(classes) == 10 and any("[" in line for line in classes)


def test_the_first_images_leave_an_interval(tiny, attacked, capsys):
    with pytest.raises(Reached):
        by_name(tiny, number=30, verbose=True, check_clean=False)
    said = capsys.readouterr().out
    assert "the first 30 images leave a 95 % interval of about [24.6, 57.7] around 40.00 %" in said
    with pytest.raises(Reached):
        by_name(tiny, verbose=True)
    assert "leave" not in capsys.readouterr().out


@pytest.mark.slow
def test_the_first_images_are_not_a_submission(tiny, short, tmp_path):
    report = by_name(tiny, number=30, save=tmp_path / "report.json", check_clean=False)
    assert report["clean"] == 100 and report["images"] == 30
    [file] = [path for path in report["files"] if "model_info" in path]
    assert file.endswith("Tiny2026Network-first30.json")
    assert "first 30" in json.loads(open_text(file))["footnote"]


def open_text(path):
    with open(path, encoding="utf-8") as file:
        return file.read()


@pytest.mark.slow
def test_another_ball_is_not_a_submission(tiny, short, tmp_path):
    options = dict(norm="l1", eps=2.0, images="test", save=tmp_path / "report.json")
    report = by_name(tiny, **options)
    assert not any("model_info" in path for path in report["files"])
    assert "40.00 for another ball, linf, eps 0.031373" in evaluate.describe(report)


@pytest.mark.slow
def test_pgd_by_name(tiny):
    report = by_name(tiny, attack="pgd", num_steps=1)
    assert report["clean"] == 75 and report["attack"]["step_size"] == 2 / 255
    assert "AutoAttack" not in evaluate.describe(report)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(weights=None), "model='Tiny2026Network' needs --weights=FILE too"),
        (dict(model=None), "weights=.* needs --model=ID too"),
        (dict(model="Tiny2026"), "id is 'Tiny2026', .* mean 'Tiny2026Network'. .*lists all 1.$"),
        (dict(arch="wrn34_10"), "--arch can't be given with --model=Tiny2026Network"),
        (dict(normalization="none"), "--normalization can't be given with --model"),
        (dict(torch="file.pt"), "--torch can't be given with --model"),
        (dict(images="train"), "--checkpoint and --images apply only to runs"),
        (dict(dataset="imagenet"), "^dataset='imagenet' does not fit id='Tiny2026Network'"),
        (dict(threat="l2"), "^threat='l2' does not fit id='Tiny2026Network', .*leave it out"),
        (dict(weights="nothing.pt"), "weights='nothing.pt': no such file"),
    ],
)
def test_what_is_refused(options, message, tiny):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        by_name(tiny, **options)
    assert not tiny.loaded  # before the images are read


def test_a_missing_data_set_comes_first(tiny, monkeypatch):
    def missing(name, folder=None):
        raise data.DataMissingError(f"{name} is not here", "get it")

    monkeypatch.setattr(data, "load", missing)
    monkeypatch.setattr(models, "load", lambda *a, **k: pytest.fail("loads the weights"))
    with pytest.raises(data.DataMissingError):
        by_name(tiny)


def test_an_id_of_several_leaderboards_is_robustbench_s_default():
    place = lambda *arguments: (
        (found := published.find("Wang2023Better_WRN-28-10", *arguments))
        and (found.dataset, found.threat)
    )
    assert place() == ("cifar10", "linf")
    assert place(None, "l2") == ("cifar10", "l2")
    assert place("cifar100") == ("cifar100", "linf")
    assert published.find("Salman2020Do_R18").dataset == "imagenet"
    with pytest.raises(ValueError, match="does not load: no network for RobustBench's class ResNe"):
        published.find("Sehwag2021Proxy_ResNest152")


def command(tiny, monkeypatch, *more):
    monkeypatch.setattr("experiments.run.environment.configure", lambda: None)
    words = ["evaluate.py", "--model=Tiny2026Network", f"--weights={tiny.path}", *more]
    monkeypatch.setattr("sys.argv", [*words, "--attack=autoattack"])
    entry_point.main()


def test_the_command_stops(tiny, attacked, monkeypatch, capsys):
    tiny.publish(clean=100.0, autoattack=0.0, best_known=0.0)
    with pytest.raises(SystemExit) as caught:
        command(tiny, monkeypatch)
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("error: clean accuracy is 75.00")
    monkeypatch.setattr(data, "ensure", lambda *a, **k: pytest.fail("downloads"))
    with pytest.raises(SystemExit):
        command(tiny, monkeypatch, "--number=0")
    assert "number=0 must be an integer >= 1" in capsys.readouterr().err
    monkeypatch.setattr(data, "ensure", lambda *a, **k: None)
    with pytest.raises(Reached):
        command(tiny, monkeypatch, "--check-clean=false")


@pytest.mark.slow
def test_the_command(tiny, short, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    command(tiny, monkeypatch)
    said = capsys.readouterr().out
    assert "no further apart than sampling explains" in said and "inside the interval" in said
    assert (tmp_path / "runs/zoo/cifar10-linf/Tiny2026Network/model_info").is_dir()


def test_the_fields_of_a_submission(tmp_path):
    found = zoo.entry("Salman2020Do_R18")
    interval = lambda percent: accuracy.interval(percent, 5000)
    report = {
        "images": 5000, "clean": 52.9, "robust": 25.0, "checks": [],
        "attack": {"norm": "linf", "eps": 4 / 255, "name": "autoattack"},
        "clean_interval": interval(52.9), "robust_interval": interval(25.0),
        "published": {
            "norm": "linf", "eps": found.radius, "clean": found.clean, "autoattack": 29.0,
        },
    }  # fmt: skip
    file = published.save_model_info(report, found, tmp_path)
    assert file == tmp_path / "model_info" / "imagenet" / "Linf" / "Salman2020Do_R18.json"
    info = json.loads(file.read_text())
    assert info == {
        "link": "https://arxiv.org/abs/2007.08489",
        "name": "Do Adversarially Robust ImageNet Models Transfer Better?",
        "authors": None, "additional_data": False, "number_forward_passes": 1,
        "dataset": "imagenet", "venue": "NeurIPS 2020", "architecture": "ResNet-18",
        "eps": "4/255", "clean_acc": "52.90", "reported": None, "autoattack_acc": "25.00",
        "footnote": None, "unreliable": False,
    }  # fmt: skip
    clean, attacked = published.compare(report).splitlines()[1:]
    assert "52.90 [51.5, 54.3]" in clean and "-0.02  published is inside" in clean
    assert "25.00 [23.8, 26.2]" in attacked and "-4.00  published is OUTSIDE" in attacked
    elsewhere = report | {"attack": report["attack"] | {"eps": 2 / 255}}
    assert (
        published.compare(elsewhere)
        .splitlines()[2]
        .endswith("published is 29.00 for another ball, linf, eps 0.015686")
    )
    some = published.model_info(report | {"images": 1000}, found)
    assert some["footnote"] == "Evaluated on the first 1,000 test images."


# Weights


def test_weights_of_a_repository(tmp_path, monkeypatch, capsys):
    fetched = []
    fake: Any = types.ModuleType("huggingface_hub")
    fake.hf_hub_download = lambda repo, file: fetched.append((repo, file)) or str(tmp_path / "w")
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
    assert weights.locate("hf://owner/name/folder/model.safetensors") == tmp_path / "w"
    assert fetched == [("owner/name", "folder/model.safetensors")]
    assert "fetching folder/model.safetensors of owner/name" in capsys.readouterr().out

    def fails(repo, file):
        raise RuntimeError("offline")

    fake.hf_hub_download = fails
    with pytest.raises(OSError, match="can't be fetched .offline.; download the file"):
        weights.locate("hf://owner/name/model.pt")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match="needs huggingface_hub .*pip install huggingface_hub"):
        weights.locate("hf://owner/name/model.pt")


def test_files_are_not_fetched(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    (tmp_path / "w.pt").write_bytes(b"")
    assert weights.locate(tmp_path / "w.pt") == tmp_path / "w.pt"
    with pytest.raises(FileNotFoundError, match="no such file or folder; give a file of PyTorch"):
        weights.locate(tmp_path / "v.pt")
