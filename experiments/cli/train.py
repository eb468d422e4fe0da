"""The command line that all training entry points share.

``--config=configs/at.py:laptop`` is looked up in the current directory first, then in
``experiments/``; ``--config.field=value`` overrides any field, with radii also as fractions:
``--config.threat.eps=8/255``. Invalid arguments print one line with the closest match and exit with
status 2.
"""

import difflib
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from absl import flags
from ml_collections import config_flags

from .. import data, settings
from ..run import hosts, metrics
from ..run.train import train_and_evaluate
from ..settings import Config, files
from . import process
from .options import nearest

_FLAGS = ("config", "workdir", "data_dir", "hosts", "log", "download", "nodownload")
_VALUE_FLAGS = ("--workdir", "--data_dir", "--hosts", "--log")
_SCALES = {
    "paper": "the default; needs a GPU, except for digits",
    "cpu": "a small network on all images; less than an hour on a CPU",
    "laptop": "minutes to an hour on a CPU",
    "smoke": "seconds",
}
_FIELD_FLAG = re.compile(r"^--?(?:no)?config\.([^=]+)")


class Arguments(NamedTuple):
    """Parsed command-line arguments.

    Attributes:
        config: resolved configuration.
        workdir: run directory.
        data_dir: folder with the data sets, None for the default.
        download: whether to download a missing data set.
        hosts: the other processes of the run, see :func:`experiments.run.hosts.start`.
        log: adapters of metrics, see :mod:`experiments.run.metrics`.
    """

    config: Config
    workdir: Path
    data_dir: Path | None
    download: bool = True
    hosts: str | None = None
    log: tuple[str, ...] = ()


def parse(argv: Sequence[str], dataset: str) -> Arguments:
    """Parses the command line of an entry point.

    Args:
        argv: command line, program name first.
        dataset: the entry point's data set.

    Returns:
        The resolved arguments.

    Raises:
        ValueError, FileNotFoundError: on invalid arguments, with a one-line message.
    """
    argv = _with_fractions_computed(files.resolve_argv(_joined(argv), [files.ROOT]))
    _check_fields(argv)
    location, argv = _split_config(argv)
    path, _, scale = location.partition(".py:")
    config = files.load_file(Path(path if path.endswith(".py") else path + ".py"), scale)
    values = flags.FlagValues()
    config_flags.DEFINE_config_dict(
        "config", config, lock_config=True, flag_values=values, sys_argv=argv
    )
    flags.DEFINE_string("workdir", None, "run directory", flag_values=values)
    flags.DEFINE_string("data_dir", None, "folder with the data sets", flag_values=values)
    flags.DEFINE_boolean("download", True, "download a missing data set", flag_values=values)
    flags.DEFINE_string("hosts", None, "the processes of the run", flag_values=values)
    flags.DEFINE_string("log", None, "files of metrics", flag_values=values)
    try:
        rest = values(argv)
        config = values["config"].value
    except (flags.Error, TypeError, AttributeError, KeyError) as error:
        raise ValueError(files.first_line(error)) from error
    if len(rest) > 1:
        raise ValueError(f"unexpected argument {rest[1]!r}; set fields with --config.field=value")
    config = settings.resolve(config, dataset)
    workdir = (
        Path(values["workdir"].value or settings.default_workdir(config)).expanduser().resolve()
    )
    data_dir = values["data_dir"].value
    data_dir = None if data_dir is None else Path(data_dir).expanduser()
    among = values["hosts"].value
    hosts.check(among)
    log = () if values["log"].value is None else metrics.parse(values["log"].value)
    return Arguments(config, workdir, data_dir, bool(values["download"].value), among, log)


def main(dataset: str, run: Callable = train_and_evaluate) -> None:
    """Runs a training entry point; exits with status 2 on invalid arguments."""
    argv = sys.argv
    if any(argument in ("-h", "--help", "-help", "--helpfull") for argument in argv[1:]):
        print(help_text(dataset))
        return
    try:
        arguments = parse(argv, dataset)
    except (ValueError, FileNotFoundError) as error:
        process.fail(error)
    if arguments.hosts is None:
        process.split_cpu(dataset, arguments.config.batch_size)

    def action():
        ensure = lambda: data.ensure(dataset, arguments.data_dir, download=arguments.download)
        hosts.writer_first(ensure)
        with metrics.logs(arguments.log, arguments.workdir / "metrics") as on_metrics:
            logged = {} if on_metrics is None else {"on_metrics": on_metrics}
            run(arguments.config, arguments.workdir, data_dir=arguments.data_dir, **logged)

    process.execute(action, arguments.hosts)


def help_text(dataset: str) -> str:
    """The ``--help`` text: usage, config files, and every field with its default."""
    configs = sorted(p for p in (files.ROOT / "configs").glob("*.py") if not p.name.startswith("_"))
    lines = [
        f"python -m experiments.{dataset} [--config=configs/METHOD.py[:SCALE]] [--workdir=DIR]",
        "    [--data_dir=DIR] [--download=false] [--hosts=HOSTS] [--log=LOGS]",
        "    [--config.FIELD=VALUE ...]",
        "",
        f"Trains and evaluates a robust classifier on {dataset}. To resume an interrupted run, run",
        "the same command again.",
        "",
        f"METHOD (default {Path(files.DEFAULT_CONFIG).stem}):",
    ]
    for path in configs:
        lines.append(f"    {path.stem:<24}{files.summary(path)}")
    lines += [
        "",
        "SCALE:",
        *(f"    {scale:<24}{_SCALES[scale]}" for scale in settings.DEFAULTS[dataset]),
        "workdir: default runs/DATASET-SCALE/METHOD/seedN.",
        "data_dir: default $JAXADV_DATA, else data.",
        "download: whether to download and verify a missing data set; default true.",
        "hosts: several processes, each with this command: auto under SLURM, Open MPI, Kubernetes",
        "    or on a Cloud TPU, else ADDRESS:PORT,NUMBER,INDEX; default one process.",
        "log: metrics of every epoch also as csv (metrics.csv in workdir) or tensorboard",
        "    (metrics-tensorboard; needs tensorboardX), or both: csv,tensorboard.",
        "VALUE: a number, a fraction such as 8/255, true or false, a name, or (0.5,0.75).",
        "",
        f"FIELD and its default on {dataset} at scale paper:",
    ]
    config = settings.resolve(settings.base(), dataset)
    lines += [f"    {name:<30}{value}" for name, value in settings.flatten(config)]
    return "\n".join(lines)


def _split_config(argv: Sequence[str]) -> tuple[str, list[str]]:
    """The last ``--config`` (or the default), and the command line without it."""
    location, rest, arguments = str(files.ROOT / files.DEFAULT_CONFIG), [], iter(argv)
    for argument in arguments:
        if files.PATH_FLAG.match(argument):
            location = argument.split("=", 1)[1] if "=" in argument else next(arguments)
        else:
            rest.append(argument)
    return location, rest


def _joined(argv: Sequence[str]) -> list[str]:
    """Normalizes flags: underscores in names, and ``--flag value`` as ``--flag=value``.

    A boolean field consumes the next word only if it is a boolean.
    """
    known = dict(settings.flatten(settings.base()))
    words, result = list(argv[1:]), [argv[0]]
    while words:
        word = words.pop(0)
        name, equals, value = word.partition("=")
        if name.startswith("--"):
            name = "--" + name[2:].replace("-", "_")
        field = _FIELD_FLAG.match(name)
        takes_value = name in ("--config", "-config", *_VALUE_FLAGS) or (
            field is not None and field[1] in known and not name.lstrip("-").startswith("no")
        )
        if not equals and takes_value and words and _is_value(field, words[0]):
            equals, value = "=", words.pop(0)
        result.append(name + equals + value)
    return result


def _is_value(field, word: str) -> bool:
    if field is not None and _field_type(field[1]) is bool:
        return word.lower() in ("true", "false", "1", "0")
    return not word.startswith("--")


def _with_fractions_computed(argv: Sequence[str]) -> list[str]:
    """Evaluates fractions such as ``--config.threat.eps=8/255``, the usual notation for radii."""
    known = dict(settings.flatten(settings.base()))

    def computed(argument):
        match = re.fullmatch(r"--?config\.([^=]+)=([0-9.]+)/([0-9.]+)", argument)
        if match is None or match[1] not in known or _field_type(match[1]) is not float:
            return argument
        try:
            return f"--config.{match[1]}={float(match[2]) / float(match[3])!r}"
        except (ValueError, ZeroDivisionError):
            return argument  # the type check rejects it as not a number

    return [computed(argument) for argument in argv]


def _check_fields(argv: Sequence[str]) -> None:
    """Suggests the closest field; absl would only say that a flag is unknown."""
    known = dict(settings.flatten(settings.base()))
    for argument in argv[1:]:
        match = _FIELD_FLAG.match(argument)
        if match and match[1] not in known:
            near = nearest(match[1], known, "--config.") or _nearest_leaf(match[1], known)
            raise ValueError(f"unknown field config.{match[1]}{near}")
        if match and "=" in argument:
            _check_type(match[1], argument.split("=", 1)[1], known[match[1]])
        flag = re.match(r"^--?(\w+)", argument)
        if flag and not match and flag[1] not in _FLAGS:
            near = nearest(flag[1], _FLAGS, "--") or _nearest_leaf(flag[1], known)
            raise ValueError(f"unknown flag {argument.split('=')[0]}{near}")


def _check_type(name: str, text: str, default: object) -> None:
    kind = _field_type(name)
    try:
        if kind in (int, float):
            kind(text)
        elif kind is bool and text.lower() not in ("true", "false", "1", "0", "t", "f"):
            raise ValueError
    except ValueError:
        expected = {int: "an integer", float: "a number", bool: "true or false"}[kind]
        raise ValueError(f"config.{name}={text!r} is not {expected}") from None


def _field_type(name: str) -> type:
    *path, leaf = name.split(".")
    section = settings.base()
    for part in path:
        section = section[part]
    return section.get_type(leaf)


def _nearest_leaf(name: str, known) -> str:
    leaves = {full.split(".")[-1]: full for full in known}
    near = difflib.get_close_matches(name.split(".")[-1], list(leaves), n=1, cutoff=0.5)
    return f"; did you mean --config.{leaves[near[0]]}?" if near else ""
