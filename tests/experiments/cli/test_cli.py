"""The command line: where configs are found, overrides of every type, and one-line mistakes."""

import os
import sys

import pytest

from experiments import settings
from experiments.cli import train as cli
from experiments.settings.files import resolve_argv
from tests.helpers.tiny_runs import ROOT, load, python


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def parse(*arguments, dataset="digits"):
    return cli.parse(["digits", *arguments], dataset)


def config(*arguments, dataset="digits"):
    return parse(*arguments, dataset=dataset).config


# Where a config is found


@pytest.mark.parametrize("form", [["--config=PATH"], ["--config", "PATH"], ["-config=PATH"]])
@pytest.mark.parametrize("folder", [ROOT, ROOT / "experiments", None])
def test_a_config_is_found_from_any_folder(form, folder, monkeypatch):
    if folder is not None:
        monkeypatch.chdir(folder)
    arguments = [part.replace("PATH", "configs/at_ensgd.py") for part in form]
    assert config(*arguments).method == "at_ensgd"
    arguments = [part.replace("PATH", "configs/at_ensgd.py:laptop") for part in form]
    assert config(*arguments).scale == "laptop"


def test_the_current_folder_comes_first(tmp_path):
    (tmp_path / "configs").mkdir()
    text = (ROOT / "experiments/configs/at.py").read_text().replace('"at"', '"mine"')
    (tmp_path / "configs" / "at.py").write_text(text)
    assert config("--config=configs/at.py").method == "mine"
    assert config(f"--config={tmp_path}/configs/at.py:smoke").scale == "smoke"


def test_resolve_argv_only_touches_the_path():
    argv = ["p", "--workdir=x", "--config=configs/at.py:smoke", "--config.seed=3"]
    path = ROOT / "experiments/configs/at.py"
    resolved = resolve_argv(argv, [ROOT / "experiments"])
    assert resolved == ["p", "--workdir=x", f"--config={path}:smoke", "--config.seed=3"]
    assert resolve_argv(["p", "--config.seed=3"], []) == ["p", "--config.seed=3"]
    with pytest.raises(FileNotFoundError):
        resolve_argv(argv, [])


def test_without_a_config_it_is_adversarial_training():
    assert config().method == "at"
    assert config("--config.seed=4").seed == 4


@pytest.mark.parametrize("scale", ["", ":", ":paper", ":laptop", ":smoke"])
def test_scales(scale):
    assert config(f"--config=configs/at.py{scale}").scale == scale.strip(":") or "paper"
    same = settings.load_config("at", scale.strip(":") or "paper", "digits")
    assert config(f"--config=configs/at.py{scale}").to_json() == same.to_json()


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--config=configs/at_ensgb.py", "no config file .*; did you mean configs/at_ensgd.py"),
        ("--config=at_ensgd.py", "no config file 'at_ensgd.py'; did you mean configs/at_ensgd.py"),
        ("--config=configs/at_ensgd", "did you mean configs/at_ensgd.py"),
        ("--config=zzz", "no config file 'zzz'; available: configs/at.py, configs/at_2nd_ensgd.py"),
        ("--config=", "no config file ''"),
        ("--config", "--config needs a file, for example --config=configs/at.py"),
    ],
)
def test_a_missing_config_file_names_the_nearest(argument, message):
    with pytest.raises(FileNotFoundError, match=message):
        parse(argument)


def test_an_unknown_scale_names_the_nearest():
    with pytest.raises(ValueError, match="scale='labtop' is not .* did you mean 'laptop'"):
        parse("--config=configs/at.py:labtop")


# Overrides


@pytest.mark.parametrize(
    ("argument", "name", "value"),
    [
        ("--config.seed=3", "seed", 3),
        ("--config.learning_rate=0.25", "learning_rate", 0.25),
        ("--config.learning_rate=1", "learning_rate", 1.0),
        ("--config.learning_rate=1e-3", "learning_rate", 1e-3),
        ("--config.weight_decay=0", "weight_decay", 0.0),
        ("--config.threat.eps=8/255", "threat.eps", 8 / 255),
        ("--config.threat.step_size=0.5/255", "threat.step_size", 0.5 / 255),
        ("--config.width=7", "width", 7),
        ("--config.train_size=640", "train_size", 640),
        ("--config.bn.clean_pass=false", "bn.clean_pass", False),
        ("--config.bn.clean_pass=0", "bn.clean_pass", False),
        ("--noconfig.bn.clean_pass", "bn.clean_pass", False),
        ("--config.entropy.second_order", "entropy.second_order", True),
        ("--config.model=mlp", "model", "mlp"),
        ("--config.entropy.preset=lua", "entropy.preset", "lua"),
        ("--config.entropy.n_in=5", "entropy.n_in", 5),
        ("--config.lr_drops=(0.3,0.6)", "lr_drops", (0.3, 0.6)),
        ("--config.lr_drops=0.3,0.6,0.9", "lr_drops", (0.3, 0.6, 0.9)),
        ("--config.lr_drops=()", "lr_drops", ()),
        ("--config.selection=test", "selection", "test"),
        ("-config.seed=3", "seed", 3),
    ],
)
def test_any_field_is_overridden(argument, name, value):
    found = dict(settings.flatten(config(argument)))[name]
    assert found == value and type(found) is type(value)


def test_an_override_in_two_words():
    assert config("--config.seed", "9").seed == 9


def test_overrides_hold_under_a_scale_and_in_any_order():
    given = ["--config.num_epochs=3", "--config=configs/at_ensgd.py:smoke", "--config.seed=1"]
    for arguments in (given, given[::-1]):
        found = config(*arguments)
        assert (found.num_epochs, found.seed, found.scale) == (3, 1, "smoke")
        assert found.optimizer == "entropy_sgd"


def test_every_field_can_be_overridden_with_its_own_value():
    for name, value in settings.flatten(settings.load_config("at_ensgd", "laptop", "digits")):
        if value is not None:
            text = str(value).replace(" ", "")
            again = config("--config=configs/at_ensgd.py:laptop", f"--config.{name}={text}")
            assert dict(settings.flatten(again))[name] == value


def test_the_config_is_locked():
    found = config()
    assert found.is_locked
    with pytest.raises(AttributeError):
        found.learning_rat = 1.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.learning_rat=1"], "unknown field .*did you mean --config.learning_rate?"),
        (["--config.n_in=3"], "unknown field config.n_in; did you mean --config.entropy.n_in"),
        (["--config.threat.epsilon=3"], "did you mean --config.threat.eps"),
        (["--config.entropy=3"], "unknown field config.entropy"),
        (["--noconfig.bn.clean_pas"], "unknown field .*did you mean --config.bn.clean_pass"),
        (["--learning_rate=1"], "unknown flag --learning_rate; did you mean --config.learning_rat"),
        (["--work_dir=x"], "unknown flag --work_dir; did you mean --workdir"),
        (["--config.seed=1.5"], "config.seed='1.5' is not an integer"),
        (["--config.seed", "1.5"], "config.seed.*1.5"),
        (["--config.seed="], "config.seed='' is not an integer"),
        (["--config.seed"], "config.seed"),
        (["--config.width=wide"], "config.width='wide' is not an integer"),
        (["--config.num_epochs=1e2"], "config.num_epochs='1e2' is not an integer"),
        (["--config.learning_rate=fast"], "config.learning_rate='fast' is not a number"),
        (["--config.threat.eps=8/0"], "config.threat.eps='8/0' is not a number"),
        (["--config.seed=8/2"], "config.seed='8/2' is not an integer"),
        (["--config.bn.clean_pass=maybe"], "config.bn.clean_pass='maybe' is not true or false"),
        (["--config.lr_drops=abc"], "config.lr_drops=.* must be fractions"),
        (["--config.lr_drops=(0.5"], "lr_drops"),
        (["--config.threat.norm=linfty"], "config.threat.norm='linfty' .*did you mean 'linf'"),
        (["--config.dataset=cifar10"], "run python -m experiments.cifar10"),
        (["more"], "unexpected argument 'more'; set fields with --config.field=value"),
        (["--workdir"], "workdir"),
    ],
)
def test_a_mistake_is_one_line(arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        parse(*arguments)
    assert "\n" not in str(error.value) and len(str(error.value)) < 200


def test_workdir_and_data_dir(tmp_path):
    found = parse("--workdir=a/b", "--data_dir=c")
    assert found.workdir == tmp_path / "a/b" and str(found.data_dir) == "c"
    found = parse("--config=configs/at_ensgd.py:laptop", "--config.seed=2")
    assert found.workdir == tmp_path / "runs/digits-laptop/at_ensgd/seed2"
    assert found.data_dir is None


def test_different_runs_have_different_default_folders():
    seen = set()
    for dataset in settings.DEFAULTS:
        for scale in settings.DEFAULTS[dataset]:
            for method in ("at", "at_ensgd"):
                for seed in (0, 1):
                    seen.add(settings.default_workdir(load(method, scale, dataset, seed=seed)))
    assert len(seen) == sum(map(len, settings.DEFAULTS.values())) * 2 * 2


# main


def run_main(monkeypatch, *arguments, run=None):
    monkeypatch.setattr("sys.argv", ["experiments/digits.py", *arguments])
    monkeypatch.setattr("experiments.run.environment.configure", lambda: None)
    cli.main("digits", run)


def test_main_hands_over_what_was_parsed(monkeypatch, tmp_path):
    seen = []
    run = lambda config, workdir, data_dir: seen.append((config, workdir, data_dir))
    run_main(monkeypatch, "--config.seed=3", "--workdir=w", "--data_dir=d", run=run)
    [(found, workdir, data_dir)] = seen
    assert found.seed == 3 and workdir == tmp_path / "w" and str(data_dir) == "d"


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (ValueError("bad value"), 2, "error: bad value\n"),
        (OSError("disk full"), 2, "error: disk full\n"),
        (FloatingPointError("loss is nan"), 2, "error: loss is nan\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_expected_failures_end_without_a_traceback(monkeypatch, capsys, error, status, text):
    def run(*_, **__):
        raise error

    monkeypatch.setattr("os._exit", sys.exit)
    with pytest.raises(SystemExit) as exit_:
        run_main(monkeypatch, run=run)
    assert exit_.value.code == status
    assert capsys.readouterr().err == text


def test_a_bug_keeps_its_traceback(monkeypatch):
    def run(*_, **__):
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError):
        run_main(monkeypatch, run=run)
    monkeypatch.setenv("JAXADV_TRACEBACK", "1")

    def value_error(*_, **__):
        raise ValueError("where?")

    with pytest.raises(ValueError, match="where"):
        run_main(monkeypatch, run=value_error)


@pytest.mark.parametrize("flag", ["--help", "-h", "--helpfull"])
@pytest.mark.parametrize("dataset", sorted(settings.DEFAULTS))
def test_help_lists_everything(monkeypatch, capsys, flag, dataset):
    monkeypatch.setattr("sys.argv", ["x.py", "--config=configs/nothing.py", flag])
    cli.main(dataset, run=None)
    text = capsys.readouterr().out
    for path in (ROOT / "experiments/configs").glob("*.py"):
        assert f"    {path.stem}  " in text
    for name, value in settings.flatten(settings.load_config("at", "paper", dataset)):
        [line] = [row for row in text.splitlines() if row.split()[:1] == [name]]
        if name != "method":
            assert line.endswith(str(value))
    for word in (
        *settings.DEFAULTS[dataset],
        "--workdir",
        "--data_dir",
        "JAXADV_DATA",
        "8/255",
        "(default at)",
    ):
        assert word in text
    assert f"python -m experiments.{dataset}" in text
    assert max(len(line) for line in text.splitlines()) <= 100


# In a process of its own


def test_the_module_exits_with_status_2_in_one_line(tmp_path):
    done = python("-m", "experiments.digits", "--config.learning_rat=1", cwd=tmp_path)
    assert done.returncode == 2
    message = "unknown field config.learning_rat; did you mean --config.learning_rate?"
    assert done.stderr == f"error: {message}\n" and done.stdout == ""
    assert os.listdir(tmp_path) == []


def test_the_module_helps_from_the_repository_root():
    done = python("-m", "experiments.cifar10", "--help", cwd=ROOT)
    assert done.returncode == 0 and done.stderr == ""
    assert "preact_resnet18" in done.stdout


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def get_config(:", "mine.py, line 1: invalid syntax"),
        ("x = 1", "mine.py has no get_config"),
    ],
)
def test_a_config_file_that_is_no_config(tmp_path, text, message):
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(ValueError, match=message):
        parse("--config=mine.py")


def test_the_last_config_counts():
    assert config("--config=configs/at.py", "--config", "configs/at_ensgd.py").method == "at_ensgd"


def test_load_config_is_for_programs():
    assert settings.load_config("at", "smoke", "digits", seed=3).seed == 3
    with pytest.raises(ValueError, match="unknown method 'at_ensgb'; did you mean at_ensgd"):
        settings.load_config("at_ensgb", "smoke", "digits")
    with pytest.raises(
        ValueError, match="unknown field 'learning_rat'; did you mean learning_rate"
    ):
        settings.load_config("at", "smoke", "digits", learning_rat=1.0)
