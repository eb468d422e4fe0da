"""Run directories: what they hold, and when they refuse."""

import collections
import hashlib
import json
import shutil

import pytest

from experiments import settings
from experiments.run.directory import RunDirectory, write_json
from tests.helpers.tiny_runs import tiny


def files(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_a_new_directory_holds_config_and_environment(tmp_path):
    config = tiny()
    directory = RunDirectory(tmp_path / "a" / "b")
    directory.open(config, needed_bytes=1)
    assert directory.config().to_json(sort_keys=True) == config.to_json(sort_keys=True)
    [facts] = directory.environment()
    for name in ("device", "packages", "commit", "command", "matmul_precision", "python"):
        assert name in facts
    assert set(facts["packages"]) >= {"jax", "flax", "optax", "numpy"}
    assert directory.report() is None and directory.metrics() == []


def test_every_start_is_recorded(tmp_path):
    for starts in (1, 2, 3):
        RunDirectory(tmp_path).open(tiny(), needed_bytes=1)
        assert len(RunDirectory(tmp_path).environment()) == starts


def test_another_configuration_is_refused_naming_the_fields(tmp_path):
    RunDirectory(tmp_path).open(tiny(), needed_bytes=1)
    before = files(tmp_path)
    with pytest.raises(ValueError) as error:
        RunDirectory(tmp_path).open(tiny(seed=1, threat__eps=0.2), needed_bytes=1)
    for part in ("seed=0 there", "threat.eps=0.05 there", "2 different", "--workdir"):
        assert part in str(error.value)
    assert files(tmp_path) == before
    # A tuple is a list in JSON, which is no difference.
    RunDirectory(tmp_path).open(tiny(lr_drops=(0.4,)), needed_bytes=1)


def test_a_full_disk_is_noticed_before_anything_is_written(tmp_path, monkeypatch):
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 2_000_000))
    with pytest.raises(OSError, match="has 2 MB left and the checkpoints need 300 MB; free some"):
        RunDirectory(tmp_path / "run").open(tiny(), needed_bytes=300_000_000)
    assert files(tmp_path / "run") == {}


def test_a_folder_that_cannot_be_made_says_what_to_do(tmp_path):
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(OSError, match="can't be used as a run directory.*another --workdir"):
            RunDirectory(path).open(tiny(), needed_bytes=1)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_read_only_folder_is_one_clear_error(tmp_path, monkeypatch):
    def refuses(*_args, **_options):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("experiments.run.checkpoints.open", refuses, raising=False)
    with pytest.raises(OSError, match="can't write .Read-only file system..*another --workdir"):
        RunDirectory(tmp_path).open(tiny(), needed_bytes=1)
    assert files(tmp_path) == {}


def test_what_is_no_run_directory_says_how_to_get_one(tmp_path):
    with pytest.raises(FileNotFoundError, match="no config.json.; train first, for example python"):
        RunDirectory(tmp_path).config()


def test_a_run_from_before_a_field_was_added_goes_on(tmp_path):
    config, directory = tiny(), RunDirectory(tmp_path)
    directory.open(config, needed_bytes=1)
    stored = json.loads(directory.config_file.read_text())
    del stored["bn"]["sync"], stored["trades"]["bn_order"], stored["threat"]["warmup"]
    directory.config_file.write_text(json.dumps(stored))
    assert directory.config().bn.sync is True
    directory.check_same(config)
    # The digest in its checkpoints: it has no such field.
    fields = dict(settings.flatten(config))
    del fields["bn.sync"], fields["trades.bn_order"], fields["threat.warmup"]
    del fields["data.stream"]
    fields = json.dumps(fields, sort_keys=True, default=list).encode()
    assert directory.digest(config) == hashlib.sha256(fields).hexdigest()
    config.unlock()
    config.bn.sync = False
    assert directory.digest(config) != hashlib.sha256(fields).hexdigest()
    with pytest.raises(ValueError, match="bn.sync=True there"):
        directory.check_same(config)


@pytest.mark.parametrize("name", ["config.json", "environment.json", "report.json"])
def test_a_damaged_file_is_named(tmp_path, name):
    directory = RunDirectory(tmp_path)
    directory.open(tiny(), needed_bytes=1)
    (tmp_path / name).write_text('{"seed": ')
    read = {"config.json": directory.config, "report.json": directory.report}
    with pytest.raises(ValueError, match=f"{name}: is damaged .*restore it from a copy"):
        read.get(name, directory.environment)()


def test_metrics_are_replaced_as_a_whole(tmp_path):
    directory = RunDirectory(tmp_path)
    rows = [{"epoch": 1, "loss": 0.1}, {"epoch": 2, "loss": None}]
    directory.write_metrics(rows[:1])
    directory.write_metrics(rows)
    assert directory.metrics() == rows
    assert [json.loads(line) for line in directory.metrics_file.read_text().splitlines()] == rows


def test_json_is_never_half_written(tmp_path):
    write_json(tmp_path / "a.json", {"a": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"a": object()})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": 1}


def test_a_config_of_another_version_is_refused(tmp_path):
    directory = RunDirectory(tmp_path / "run")
    directory.open(tiny(), needed_bytes=1)
    stored = json.loads(directory.config_file.read_text())
    del stored["weight_decay"]
    directory.config_file.write_text(json.dumps(stored))
    with pytest.raises(ValueError, match="no field 'weight_decay': a different version of jaxadv"):
        directory.config()
