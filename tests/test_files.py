"""Files appear whole or not at all."""

import os

import pytest

from jaxadv._files import write_atomically


def test_files_are_on_disk_before_they_are_renamed(tmp_path, monkeypatch):
    events = []
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: events.append("sync") or sync(handle))
    monkeypatch.setattr(os, "replace", lambda *names: events.append("rename") or replace(*names))
    write_atomically(tmp_path / "file", lambda file: file.write(b"content"))
    assert events == ["sync", "rename", "sync"]  # the file, its name, the folder


def test_a_writer_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def broken(file):
        file.write(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, broken)
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["file"]
