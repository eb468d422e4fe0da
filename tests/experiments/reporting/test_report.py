"""The HTML report of a run: what it says, that it is self-contained, and that it never hurts."""

import base64
import contextlib
import html
import html.parser
import io
import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from experiments import report
from experiments.data import DataMissingError
from experiments.evaluation import evaluate
from experiments.reporting import html as pieces
from experiments.reporting import images as shown
from experiments.reporting.write import write
from experiments.run import build, train
from experiments.run.accuracy import with_interval
from experiments.run.directory import RunDirectory, write_json
from experiments.run.predictions import load_predictions
from experiments.run.task import Stream, key_for, load_task
from jaxadv import attacks
from tests.helpers.arrays import load_arrays
from tests.helpers.tiny_runs import parts, tiny

VOID = ("meta", "img", "br")


class Page(html.parser.HTMLParser):
    """Text, images and links of a page; refuses tags that do not match."""

    def __init__(self, text):
        super().__init__()
        self.open, self.images, self.links, self.text, self.tags = [], [], [], [], set()
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        attributes = dict(attrs)
        self.links += [attributes[name] for name in ("src", "href") if name in attributes]
        if tag == "img":
            assert attributes["alt"]
            self.images.append(attributes["src"])
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def words(self):
        return " ".join(" ".join(self.text).split())

    def pictures(self):
        data = [base64.b64decode(source.split(",", 1)[1]) for source in self.images]
        return [np.asarray(Image.open(io.BytesIO(picture))) for picture in data]


def read(directory):
    return Page((directory.path / "report.html").read_text(encoding="utf-8"))


@pytest.fixture
def copy(finished, tmp_path):
    """A copy of a finished run, to be changed."""
    shutil.copytree(finished("at").directory.path, tmp_path / "run")
    return RunDirectory(tmp_path / "run")


def test_training_leaves_a_report(finished):
    done = finished("at")
    page, test = read(done.directory), done.report["test"]
    words = page.words()
    assert "AT on digits" in words and "finished" in words and "not finished" not in words
    for name in ("selected", "last"):
        clean, robust = (with_interval(test[name][n], 50) for n in ("clean", "robust"))
        assert "[" in clean and "]" in robust
        numbers = f"{clean} {robust}"
        epoch = done.report[f"{name}_epoch"]
        assert f"{name} checkpoint {epoch} {numbers} not run 50" in words
    assert "threat.eps 0.05" in words and done.report["environment"]["device"] in words
    assert "Start 1 of 1" in words and f"jax {done.report['environment']['packages']['jax']}"


def test_it_is_self_contained(finished):
    page = read(finished("at").directory)
    files = {path.name for path in finished("at").directory.path.iterdir()}
    beside = [link for link in page.links if not link.startswith("data:image/png;base64,")]
    assert set(beside) == files - {"report.html", "lock"} and "selected.ckpt" in beside
    assert not page.tags & {"script", "link", "iframe", "object", "embed"}
    text = (finished("at").directory.path / "report.html").read_text(encoding="utf-8")
    assert "default-src 'none'" in text and "url(" not in text and "http" not in text.replace(
        "http-equiv", ""
    )  # fmt: skip


def test_confusions_agree_with_the_accuracies(finished):
    done = finished("at")
    predictions, labels = load_predictions(done.directory)
    assert labels.tolist() == load_task(done.config).test.labels.tolist()
    for name, predicted in zip(("clean", "robust"), predictions, strict=True):
        counts = shown.confusion(labels, predicted, 10)
        found = done.report["test"]["selected"]
        assert 100 * np.trace(counts) / counts.sum() == pytest.approx(found[name])
        assert counts.sum(axis=1).tolist() == [row["images"] for row in found["classes"]]
    pairs = list(zip(labels.tolist(), predictions.adversarial.tolist(), strict=True))
    assert counts[3].tolist() == [pairs.count((3, other)) for other in range(10)]


def test_examples_are_the_images_of_the_final_evaluation(finished):
    done = finished("at")
    task = load_task(done.config)
    model = shown.load_model(done.directory, done.config, task)
    predictions, labels = load_predictions(done.directory)
    found = shown.examples(model, predictions)
    clean, adversarial = predictions
    broken = (clean == labels) & (adversarial != labels)
    assert len(found) == 10 and 3 < broken.sum() < 10
    assert [e.is_broken for e in found] == [True] * broken.sum() + [False] * (10 - broken.sum())
    for e in found:
        assert (e.label, e.clean, e.robust) == (
            labels[e.index],
            clean[e.index],
            adversarial[e.index],
        )
        np.testing.assert_allclose(e.image, task.test.images[e.index] / 255, atol=1e-6)
        assert 0.02 < e.distance < 0.05 + 1e-6
        assert e.distance == pytest.approx(np.abs(e.adversarial - e.image).max())
    params, batch_stats = parts(done.directory.selected, done.config)
    apply_fn = build.make_apply(build.build_model(done.config, task.dataset))
    images = jnp.asarray(task.test.images, jnp.float32) / 255
    logits_fn = lambda x: apply_fn(params, batch_stats, x, False)[0]
    attack = model.attack()
    whole = [
        attacks.pgd(
            key_for(done.config, Stream.TEST), logits_fn, images, jnp.asarray(labels),
            **attack | {"num_steps": number},
        )
        for number in range(attack["num_steps"] + 1)
    ]  # fmt: skip
    ours = np.stack([e.adversarial for e in found])
    expected = np.asarray(whole[-1])[[e.index for e in found]]
    assert np.mean(np.abs(ours - expected) > 1e-6) < 0.02  # a sign can hang on the last bit
    # The step is the length of the shortest attack that breaks the image.
    wrong = np.stack([np.asarray(logits_fn(points).argmax(1)) != labels for points in whole])
    steps = [int(wrong[:, e.index].argmax()) for e in found if e.is_broken]
    assert [e.step for e in found if e.is_broken] == steps and max(steps) > 0


def test_images_that_withstand_come_last():
    labels = np.array([0, 0, 1, 1, 2, 2])
    order = shown.first_broken(labels, np.array([False, True, True, True, False, False]), 5)
    assert order.tolist() == [1, 2, 3, 0, 4]


def test_the_pictures_show_image_perturbation_and_adversarial_image(finished):
    done = finished("at")
    curves, *pictures = read(done.directory).pictures()
    assert curves.shape[1] > 500 and len(pictures) == 3 * 10
    task = load_task(done.config)
    model = shown.load_model(done.directory, done.config, task)
    examples = shown.examples(model, load_predictions(done.directory)[0])
    for e, start in zip(examples, range(0, 30, 3), strict=True):
        clean, change, adversarial = (p[..., 0].astype(float) for p in pictures[start : start + 3])
        np.testing.assert_array_equal(clean, task.test.images[e.index][..., 0])
        np.testing.assert_allclose(adversarial, 255 * e.adversarial[..., 0], atol=1)
        difference = (e.adversarial - e.image)[..., 0]
        assert (change[difference > 0.005] > 127).all()
        assert (change[difference < -0.005] < 127).all()


def test_predictions_are_made_anew_where_they_were_not_kept(copy):
    before = (copy.path / "predictions-selected.npz").read_bytes()
    page = (copy.path / "report.html").read_text(encoding="utf-8")
    (copy.path / "predictions-selected.npz").unlink()
    (copy.path / "report.html").unlink()
    assert write(copy.path) == copy.path / "report.html"
    assert (copy.path / "report.html").read_text(encoding="utf-8") == page
    again, _ = load_predictions(copy)
    kept = load_arrays(io.BytesIO(before))
    np.testing.assert_array_equal(again.clean, kept["clean"])
    np.testing.assert_array_equal(again.adversarial, kept["robust"])


def test_autoattack_is_shown_once_it_has_run(copy):
    """Also on the first test images, of which the most count."""
    classes = copy.report()["test"]["selected"]["classes"]
    found = {
        "images": 20,
        "clean": 40.0,
        "robust": 15.0,
        "classes": [row | {"robust": 12.5} for row in classes],
        "accuracy": {"clean": 40.0, "apgd-ce": 20.0, "square": 15.0},
        "warnings": ["<b>odd</b>"],
        "broken_by": {"clean": 12, "apgd-ce": 4, "square": 1},
        "evaluations": {"apgd-ce": {"forward": 1234, "backward": 567}},
    }
    write_json(copy.path / "autoattack-selected-test-first20.json", found)
    write_json(copy.path / "autoattack-selected-test-first9.json", found | {"robust": 77.0})
    write_json(copy.path / "autoattack-selected-test-rand-first40.json", found | {"robust": 77.0})
    write(copy.path)
    words = read(copy).words()
    assert "77.0" not in words and "autoattack" not in (copy.report() or {})
    assert f"{with_interval(15.0, 20)} (20 images) 50" in words
    assert f"apgd-ce {with_interval(20.0, 20)} 4 1,234 567 square" in words
    assert "<b>odd</b>" in words  # as text
    assert words.count("12.50") >= 10


def test_autoattack_has_a_confusion_and_examples(copy):
    """Images that PGD did not break come first."""
    task = load_task(copy.config())
    (_, adversarial), labels = load_predictions(copy)
    images = task.test.images[:20].astype(np.float32) / 255
    labels, robust = labels[:20], np.arange(20) % 2 == 1
    result = attacks.AutoAttackResult(
        images=np.where(robust[:, None, None, None], images, 0.2 + 0.8 * images),
        labels=labels,
        predictions=np.where(robust, labels, (labels + 3) % 10).astype(np.int32),
        robust=robust,
        broken_by=np.where(robust, "", "apgd-ce"),
        broken_run=np.where(robust, -1, 0),
        broken_step=np.where(robust, -1, np.arange(20)),
        norms=np.where(robust, 0, 0.2).astype(np.float32),
        margins=np.zeros(20, np.float32),
        individual=np.zeros((0, 20), bool),
        accuracy={"clean": 1.0, "apgd-ce": 0.5},
        evaluations={},
        seconds={},
        checks=[],
        settings={},
    )
    missed = np.flatnonzero((adversarial[:20] == labels) & ~robust)
    assert 0 < missed.size < 10
    result.save(copy.autoattack_file("selected").with_suffix(".npz"))
    found = shown.autoattack_examples(result, task.test.images, adversarial[:20] == labels)
    assert sorted(e.index for e in found[: missed.size]) == missed.tolist()[:10]
    for e in found:
        assert e.is_broken and e.attack == "apgd-ce" and e.step == result.broken_step[e.index]
        assert e.distance == result.norms[e.index] == pytest.approx(0.2)
    write(copy.path)
    words = read(copy).words()
    assert "AutoAttack, 20 images: % of the true class" in words
    first = found[0]
    assert (
        f"(test image {first.index}), predicted {first.clean} → {first.robust} "
        f"apgd-ce, step {first.step} , Linf distance 0.2".replace(" ,", ",")
        in words
    )
    copy.autoattack_file("selected").with_suffix(".npz").write_bytes(b"torn")
    write(copy.path)
    assert "is not an AutoAttack result or is damaged" in read(copy).words()


def test_judging_a_run_renews_its_report(copy, monkeypatch, capsys):
    """The usual AutoAttack of a run does; one with another radius is no part of the report."""
    classes = copy.report()["test"]["selected"]["classes"]
    common = {"images": 50, "clean": 40.0, "classes": classes, "warnings": []}

    def judge(eps, robust):
        found = common | {"robust": robust, "accuracy": {"clean": 40.0, "square": robust}}
        monkeypatch.setattr(
            "experiments.evaluation.autoattack.run_autoattack", lambda *_, **__: (found, None)
        )
        return evaluate.evaluate(copy.path, attack="autoattack", eps=eps, verbose=False, save=True)

    before = (copy.path / "report.html").read_bytes()
    judge(0.3, 3.25)
    assert (copy.path / "report.html").read_bytes() == before
    found = judge(None, 15.0)
    words = read(copy).words()
    assert f"{with_interval(15.0, 50)} 50" in words and "square 15.00 [" in words
    assert found["files"][-1] == str(copy.path / "report.html")

    # A page that can't be written is no reason to lose the numbers.
    monkeypatch.setattr("experiments.reporting.write.write", lambda *_, **__: 1 / 0)
    judge(None, 11.5)
    assert copy.report()["autoattack"]["selected"]["robust"] == 11.5
    assert "results are saved, but the HTML report" in capsys.readouterr().out


def test_a_run_under_way_has_a_report_too(copy, tmp_path):
    copy.report_file.unlink()
    copy.write_metrics(copy.metrics()[:2])
    write(copy.path)
    words = read(copy).words()
    assert "not finished: 2 of 3 epochs" in words and "Test images" not in words
    assert len(read(copy).images) == 1
    fresh = RunDirectory(tmp_path / "fresh")
    fresh.open(tiny(), needed_bytes=1)
    write(fresh.path)
    assert "No epoch has finished yet" in read(fresh).words()


def test_everything_is_escaped(copy):
    nasty = "<script>alert('1')</script>&\"quoted\""
    starts = copy.environment()
    starts[0]["command"] = nasty
    write_json(copy.path / "environment.json", starts)
    stored = json.loads(copy.report_file.read_text())
    stored["data"]["source"] = nasty
    stored["test"]["selected"]["classes"][3]["class"] = nasty
    write_json(copy.report_file, stored)
    write(copy.path)
    page = read(copy)
    assert "script" not in page.tags and page.words().count(nasty) > 5


def test_without_the_data_set_the_rest_is_shown(copy, monkeypatch):
    def absent(*_):
        raise DataMissingError("digits: <not> here", "get it")

    monkeypatch.setattr("experiments.reporting.write.load_task", absent)
    write(copy.path)
    page = read(copy)
    assert "the data set is missing: digits: <not> here. get it" in page.words()
    assert len(page.images) == 1 and "clean, 50 images: % of the true class" in page.words()


def test_a_report_that_fails_does_not_fail_the_training(monkeypatch, tmp_path, capsys):
    def broken(*_args, **_options):
        raise RuntimeError("no fonts\nat all")

    monkeypatch.setattr("experiments.reporting.write.write", broken)
    config = tiny()
    found = train.train_and_evaluate(config, tmp_path / "run")
    assert found == RunDirectory(tmp_path / "run").report()
    out = capsys.readouterr()
    [line] = [line for line in (out.out + out.err).splitlines() if "HTML" in line]
    assert "results are saved" in line and "(no fonts)" in line
    assert f"python -m experiments.report --workdir={tmp_path / 'run'}" in line


def test_the_command(copy, monkeypatch, capsys):
    monkeypatch.setattr("experiments.run.environment.configure", lambda: None)
    (copy.path / "report.html").unlink()
    for argument in (f"--workdir={copy.path}", str(copy.path)):
        monkeypatch.setattr("sys.argv", ["report.py", argument])
        report.main()
        assert capsys.readouterr().out == f"written: {copy.path / 'report.html'}\n"
        assert (copy.path / "report.html").is_file()
    monkeypatch.setattr("sys.argv", ["report.py", f"--workdir={copy.path / 'nowhere'}"])
    with pytest.raises(SystemExit) as exit_:
        report.main()
    assert exit_.value.code == 2 and "is not a run directory" in capsys.readouterr().err


def test_many_classes_are_a_picture_and_the_worst_pairs():
    counts = 5 * np.eye(30, dtype=int)
    counts[7, 21], counts[2, 3] = 4, 2
    names = [f"class {i}" for i in range(30)]
    page = Page(pieces.page("t", [pieces.confusion(counts, names, "clean")]))
    assert len(page.images) == 1 and page.pictures()[0].shape[:2] == (30, 30)
    assert "images class 7 class 21 4 class 2 class 3 2" in page.words()


def test_a_colour_image_keeps_its_colours():
    values = np.zeros((2, 2, 3))
    values[0, 1] = (1.0, 0.5, 0.0)
    picture = np.asarray(Image.open(io.BytesIO(pieces.png(values))))
    assert picture[0, 1, :3].tolist() == [255, 128, 0]


def test_markup_in_any_field_is_text(finished, tmp_path):
    """Every text and number of the run's JSON replaced by markup, one after the other."""
    evil = "<script>alert(1)</script>"
    source = finished("at").directory.path
    for name in ("seed", "selection", "method", "model", "scale", "precision", "batch_size"):
        copy = tmp_path / name
        shutil.copytree(source, copy)
        config = json.loads((copy / "config.json").read_text())
        (copy / "config.json").write_text(json.dumps(config | {name: evil}))
        with contextlib.suppress(ValueError):  # refused is as good
            write(copy)
            assert "<script" not in (copy / "report.html").read_text()
    for section, name in (("eval", "num_steps"), ("threat", "num_steps"), ("threat", "norm")):
        copy = tmp_path / f"{section}-{name}"
        shutil.copytree(source, copy)
        config = json.loads((copy / "config.json").read_text())
        config[section][name] = evil
        (copy / "config.json").write_text(json.dumps(config))
        with contextlib.suppress(ValueError):
            write(copy)
            assert "<script" not in (copy / "report.html").read_text()


@pytest.mark.parametrize("content", ["{}", '{"test": 3}', '{"test": {"selected": []}}'])
def test_a_report_of_another_shape_is_one_line_that_names_the_run(finished, tmp_path, content):
    copy = tmp_path / "run"
    shutil.copytree(finished("at").directory.path, copy)
    (copy / "report.json").write_text(content)
    with pytest.raises(ValueError, match=r"run: config\.json, .* is damaged"):
        write(copy)
