"""Command lines as people type them: right, or one line and nothing left behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments.cli import options, process
from experiments.cli import train as cli
from experiments.cli.help.write import programs
from experiments.evaluation import evaluate, shards

ROOT = Path(__file__).parents[3]
SMOKE = "--config=configs/at.py:smoke"


def parse(*words):
    return cli.parse(["digits", *words], "digits")


@pytest.mark.parametrize(
    "words",
    [
        ("--config.threat.eps=8/255",),
        ("--config.threat.eps", "8/255"),
        ("-config.threat.eps=8/255",),
        ("--config.threat.eps", str(8 / 255)),
    ],
)
def test_a_flag_and_its_value_stand_together_or_apart(words):
    assert parse(SMOKE, *words).config.threat.eps == 8 / 255


def test_fields_and_flags_take_both_spellings(tmp_path):
    forms = [
        ("--config.num-epochs", "3", "--data-dir", str(tmp_path)),
        ("--config.num_epochs=3", f"--data_dir={tmp_path}"),
    ]
    for words in forms:
        found = parse("--config", "configs/at.py:smoke", *words)
        assert found.config.num_epochs == 3 and found.data_dir == tmp_path


def test_booleans_tuples_and_negative_numbers(tmp_path):
    assert parse(SMOKE, "--config.awp.enabled").config.awp.enabled is True
    assert parse(SMOKE, "--config.awp.enabled", "true").config.awp.enabled is True
    assert parse(SMOKE, "--config.awp.enabled", "false").config.awp.enabled is False
    assert parse(SMOKE, "--config.lr_drops", "(0.25,0.5)").config.lr_drops == (0.25, 0.5)
    with pytest.raises(ValueError, match="config.seed=-1"):
        parse(SMOKE, "--config.seed", "-1")


def test_a_home_folder_is_expanded(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    found = parse(SMOKE, "--workdir=~/run", "--data-dir=~/data")
    assert found.workdir == tmp_path / "run" and found.data_dir == tmp_path / "data"


def test_every_parser_takes_both_spellings():
    parser = options.Parser()
    parser.add_argument("--data-dir")
    parser.add_argument("--batch_size", type=int)
    for words in (["--data_dir=a", "--batch-size", "3"], ["--data-dir", "a", "--batch_size=3"]):
        found = parser.parse_args(words)
        assert (found.data_dir, found.batch_size) == ("a", 3)


def test_the_remedy_is_what_the_type_says_of_itself(capsys):
    parser = options.Parser()
    parser.add_argument("--widths", type=options.integers)
    parser.add_argument("--size", type=lambda text: int(text))
    for word, wanted in (
        ("--widths=16,b", "integers with commas between them, such as 16,64"),
        ("--size=b", "a valid value"),
    ):
        with pytest.raises(SystemExit):
            parser.parse_args([word])
        name, value = word.split("=")
        assert capsys.readouterr().err == f"error: {name}={value!r} is not {wanted}\n"


@pytest.mark.parametrize("program", ["experiments", "theory", "benchmarks"])
def test_no_entry_point_has_a_parser_of_its_own(program):
    for path in (ROOT / program).rglob("*.py"):
        if path.name != "options.py":
            assert "argparse.ArgumentParser(" not in path.read_text(), path


@pytest.mark.parametrize("text", ["-1", "4294967296", "1.5", "x"])
def test_a_seed_that_would_be_another_is_refused(text):
    with pytest.raises(ValueError):
        options.seed(text)


def mistaken(*words, capsys):
    parser = options.Parser()
    parser.add_argument("figure", choices=("fig1", "fig2"))
    parser.add_argument("--attack", choices=("pgd", "autoattack"))
    parser.add_argument("-n", "--number", type=int)
    parser.add_argument("--eps", type=options.fraction)
    parser.add_argument("--mean", type=options.numbers)
    parser.add_argument("--seed", type=options.seed)
    parser.add_argument("--log", type=process.logs)
    parser.add_argument("--hosts", type=process.processes)
    parser.add_argument("--shard", type=shards.parse)
    parser.add_argument("--all", action="store_true")
    with pytest.raises(SystemExit) as stopped:
        parser.parse_args(words)
    out, err = capsys.readouterr()
    assert stopped.value.code == 2 and not out and err.endswith("\n")
    return err[:-1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "figure is missing; give one of fig1, fig2"),
        ("figg1", "figure='figg1' is not one of fig1, fig2; did you mean fig1?"),
        ("x --all", "figure='x' is not one of fig1, fig2"),
        ("fig1 fig2", "unexpected argument fig2; --help lists what there is"),
        ("fig1 --atack=pgd", "unknown option --atack; did you mean --attack?"),
        ("fig1 --nonsense 3", "unknown option --nonsense; --help lists what there is"),
        (
            "fig1 --attack=autoatack",
            "--attack='autoatack' is not one of pgd, autoattack; did you mean autoattack?",
        ),
        ("fig1 --attack", "--attack has no value; give one of pgd, autoattack"),
        ("fig1 -n ten", "--number='ten' is not an integer, such as 100"),
        ("fig1 --number --all", "--number has no value; give an integer, such as 100"),
        ("fig1 --eps=8/0", "--eps='8/0' is not a number, or a fraction such as 8/255"),
        ("fig1 --eps", "--eps has no value; give a number, or a fraction such as 8/255"),
        ("fig1 --mean=1,b", "--mean='1,b' is not numbers or fractions with commas between them,"),
        ("fig1 --seed=-1", "--seed='-1' is not an integer in [0, 2^32)"),
        ("fig1 --log=cvs", "--log='cvs' is not one of 'csv', 'tensorboard'; did you mean 'csv'?"),
        ("fig1 --hosts=h:1,2", "--hosts=h:1,2 is neither auto nor ADDRESS:PORT,NUMBER,INDEX"),
        ("fig1 --shard=4/4", "--shard='4/4' is not a shard i/n with i from 0 to n - 1, such as 0/"),
        ("fig1 --all=yes", "--all='yes' takes no value; write --all"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_argument_and_the_remedy(words, message, capsys):
    found = mistaken(*words.split(), capsys=capsys)
    assert found.startswith(f"error: {message}") and "\n" not in found


@pytest.mark.slow
@pytest.mark.parametrize("program", programs())
def test_every_program_refuses_an_unknown_option_in_one_line(program):
    if program == "benchmarks.training":
        pytest.importorskip("torch")
    command = [sys.executable, "-m", program, "--nonsense=1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and not done.stdout
    assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith("error: ")
    assert "nonsense" in done.stderr or "missing" in done.stderr


CONFIGS = {
    "none": ("def get_config(scale): pass", "returns a NoneType"),
    "dict": ("def get_config(scale): return {}", "returns a dict"),
    "no argument": ("def get_config(): pass", "must accept the scale"),
    "no function": ("get_config = 3", "has no get_config"),
    "raises": ("raise RuntimeError('no luck')", "raises RuntimeError: no luck"),
    "raises inside": ("def get_config(scale): return 1 / 0", "raises ZeroDivisionError"),
    "a field less": (
        "from experiments import settings\n"
        "def get_config(scale):\n"
        "    config = settings.base(scale)\n"
        "    del config.seed\n"
        "    return config",
        "is missing seed",
    ),
    "syntax": ("def get_config(scale)", "line 1"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_file_that_is_none_is_one_line_that_names_it(name, tmp_path):
    text, message = CONFIGS[name]
    path = tmp_path / "mine.py"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        parse(f"--config={path}")
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_too_many_epochs_are_refused():
    with pytest.raises(ValueError, match=r"config\.num_epochs=3000000000 exceeds"):
        parse(SMOKE, "--config.num_epochs=3000000000")


@pytest.mark.parametrize("output", ["folder", "file/below/report.json"])
def test_an_output_that_cannot_be_written_is_found_before_the_work(tmp_path, output):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError, match="choose another path|give a file name"):
        evaluate.evaluate(workdir=tmp_path / "no run", save=tmp_path / output)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


@pytest.mark.parametrize(
    "word",
    [
        "--config.seed=-1",
        pytest.param("--config.threat.eps=8", marks=pytest.mark.slow),
        pytest.param("--config.nonsense=1", marks=pytest.mark.slow),
    ],
)
def test_a_refused_command_leaves_nothing_behind(word, tmp_path):
    command = [sys.executable, "-m", "experiments.digits", SMOKE, word]
    workdir = tmp_path / "run"
    done = subprocess.run(
        [*command, f"--workdir={workdir}"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1
    assert done.stderr.startswith("error: ") and not workdir.exists()


def test_ctrl_c_while_importing_prints_no_traceback():
    command = [sys.executable, "-m", "experiments.digits", SMOKE]
    started = subprocess.Popen(
        command, cwd=ROOT, stderr=subprocess.PIPE, text=True, env=os.environ | {"HOME": "/nowhere"}
    )
    with started:
        maps = Path(f"/proc/{started.pid}/maps")
        while "numpy" not in maps.read_text():  # the imports have begun, and JAX takes longer
            time.sleep(0.01)
        started.send_signal(signal.SIGINT)
        _, errors = started.communicate(timeout=60)
    assert started.returncode == 130 and "Traceback" not in errors
