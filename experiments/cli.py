"""The command line that all training entry points share.

``--config=configs/at.py:laptop`` is found from the current directory first, then from
``experiments/``; any field is overridden by ``--config.field=value``, radii also as fractions:
``--config.threat.eps=8/255``. Mistakes end in one line that
names the nearest thing that exists, and exit status 2.
"""

import difflib
import importlib.util
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

from absl import flags
from ml_collections import ConfigDict, config_flags

from jaxadv._checks import check_choice

from . import settings, signals
from .settings import Config

ROOT = Path(__file__).parent
DEFAULT_CONFIG = "configs/at.py"
_PATH_FLAG = re.compile(r"^--?config(=|$)")
_FIELD_FLAG = re.compile(r"^--?(?:no)?config\.([^=]+)")


class Arguments(NamedTuple):
    """What the command line asked for.

    Attributes:
        config: resolved configuration.
        workdir: run directory.
        data_dir: where data sets are looked for, None for the default.
        download: whether a missing data set may be fetched.
    """

    config: Config
    workdir: Path
    data_dir: Path | None
    download: bool = True


def resolve_argv(argv: Sequence[str], roots: Sequence[Path]) -> list[str]:
    """Replaces the path in ``--config=PATH[:SCALE]`` by that of the file that exists.

    Args:
        argv: command line, program name first.
        roots: folders in which a relative path is looked for, in this order, after the current one.

    Returns:
        The command line with an absolute path; unchanged where no ``--config`` stands.

    Raises:
        FileNotFoundError: if the file is in none of the places; names the configs that exist.
    """
    result = list(argv)
    for position, argument in enumerate(argv):
        if not _PATH_FLAG.match(argument):
            continue
        if "=" not in argument and position + 1 >= len(argv):
            raise FileNotFoundError("--config needs a file, for example --config=configs/at.py")
        value = argument.split("=", 1)[1] if "=" in argument else argv[position + 1]
        path, separator, scale = value.partition(".py:")
        path = path + ".py" if separator else path
        found = next((p for p in (Path.cwd(), *roots) if (p / path).is_file()), None)
        if found is None:
            existing = sorted(f"configs/{p.name}" for p in (ROOT / "configs").glob("*.py"))
            near = _nearest(path, existing) or f"; there are {', '.join(existing)}"
            raise FileNotFoundError(f"no config file {path!r}{near}")
        check_choice("scale", scale or "paper", settings.SCALES)
        resolved = str((found / path).resolve()) + (f":{scale}" if separator else "")
        if "=" in argument:
            result[position] = "--config=" + resolved
        else:
            result[position + 1] = resolved
    return result


def parse(argv: Sequence[str], dataset: str) -> Arguments:
    """Reads the command line of an entry point.

    Args:
        argv: command line, program name first.
        dataset: name of the data set of the entry point.

    Returns:
        The resolved arguments.

    Raises:
        ValueError, FileNotFoundError: on mistakes, with a one-line message.
    """
    argv = _with_fractions_computed(resolve_argv(_joined(argv), [ROOT]))
    _check_fields(argv)
    location, argv = _split_config(argv)
    path, _, scale = location.partition(".py:")
    config = _load_file(Path(path if path.endswith(".py") else path + ".py"), scale)
    values = flags.FlagValues()
    config_flags.DEFINE_config_dict(
        "config", config, lock_config=True, flag_values=values, sys_argv=argv
    )
    flags.DEFINE_string("workdir", None, "run directory", flag_values=values)
    flags.DEFINE_string("data_dir", None, "folder of the data sets", flag_values=values)
    flags.DEFINE_boolean("download", True, "fetch a missing data set", flag_values=values)
    try:
        rest = values(argv)
        config = values["config"].value
    except (flags.Error, TypeError, AttributeError, KeyError) as error:
        raise ValueError(_first_line(error)) from error
    if len(rest) > 1:
        raise ValueError(f"unexpected argument {rest[1]!r}; fields are --config.field=value")
    config = settings.resolve(config, dataset)
    workdir = Path(values["workdir"].value or default_workdir(config)).expanduser().resolve()
    data_dir = values["data_dir"].value
    data_dir = None if data_dir is None else Path(data_dir).expanduser()
    return Arguments(config, workdir, data_dir, bool(values["download"].value))


def default_workdir(config: Config) -> Path:
    """Where a run goes unless ``--workdir`` says otherwise: runs/DATASET-SCALE/METHOD/seedN."""
    return Path("runs") / f"{config.dataset}-{config.scale}" / config.method / f"seed{config.seed}"


def main(dataset: str, run: Callable | None = None) -> None:
    """Runs an entry point: trains as the command line says; exit status 2 on a mistake."""
    argv = sys.argv
    if any(argument in ("-h", "--help", "-help", "--helpfull") for argument in argv[1:]):
        print(help_text(dataset))
        return
    try:
        arguments = parse(argv, dataset)
    except (ValueError, FileNotFoundError) as error:
        fail(error)
    if run is None:
        from .train import train_and_evaluate as run  # jax starts here, after the command line
    split_cpu(dataset)

    def action():
        from . import data

        data.ensure(dataset, arguments.data_dir, download=arguments.download)
        run(arguments.config, arguments.workdir, data_dir=arguments.data_dir)

    execute(action)


def split_cpu(dataset: str) -> None:
    """One CPU device a core for the training of data sets of larger images."""
    from . import environment

    if dataset != "digits":
        environment.split_cpu()


def execute(action: Callable[[], object]) -> None:
    """Calls ``action``; expected failures end in their message and a status, not in a traceback."""
    from . import environment

    environment.configure()
    try:
        with signals.installed():
            action()
    except KeyboardInterrupt as error:
        signals.leave(error)
    except (ValueError, OSError, FloatingPointError) as error:
        if os.environ.get("JAXADV_TRACEBACK"):
            raise
        fail(error)


def fail(error: BaseException) -> NoReturn:
    """Prints the message of an error and exits with status 2."""
    print(f"error: {error}", file=sys.stderr)
    raise SystemExit(2) from None


def help_text(dataset: str) -> str:
    """What ``--help`` prints: usage, config files, and every field with its default."""
    configs = sorted(p for p in (ROOT / "configs").glob("*.py") if not p.name.startswith("_"))
    lines = [
        f"python -m experiments.{dataset} [--config=configs/METHOD.py[:SCALE]] [--workdir=DIR]",
        "    [--data_dir=DIR] [--download=false] [--config.FIELD=VALUE ...]",
        "",
        f"Trains and evaluates a robust classifier on {dataset}. A run that was stopped goes on",
        "where it was when the same command is given again.",
        "",
        f"METHOD (default {Path(DEFAULT_CONFIG).stem}):",
    ]
    for path in configs:
        lines.append(f"    {path.stem:<24}{_summary(path)}")
    lines += [
        "",
        "SCALE: paper (default), laptop (minutes to an hour on a CPU), smoke (seconds).",
        "workdir: default runs/DATASET-SCALE/METHOD/seedN.",
        "data_dir: default the environment variable JAXADV_DATA, else data.",
        "download: whether a data set that is not there is fetched and verified; default true.",
        "VALUE: a number, a fraction such as 8/255, true or false, a name, or (0.5,0.75).",
        "",
        f"FIELD and its default on {dataset} at scale paper:",
    ]
    config = settings.resolve(settings.base(), dataset)
    lines += [f"    {name:<30}{value}" for name, value in fields(config)]
    return "\n".join(lines)


def fields(config: Config, prefix: str = "") -> Iterator[tuple[str, object]]:
    """All fields of a configuration as (dotted name, value)."""
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            yield from fields(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _summary(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    return text.split('"""')[1].strip().splitlines()[0] if '"""' in text else ""


def _split_config(argv: Sequence[str]) -> tuple[str, list[str]]:
    """The last ``--config`` (or the default one), and the command line without any."""
    location, rest, arguments = str(ROOT / DEFAULT_CONFIG), [], iter(argv)
    for argument in arguments:
        if _PATH_FLAG.match(argument):
            location = argument.split("=", 1)[1] if "=" in argument else next(arguments)
        else:
            rest.append(argument)
    return location, rest


def _load_file(path: Path, scale: str) -> Config:
    """What ``get_config(scale)`` of a config file returns."""
    spec = importlib.util.spec_from_file_location(f"experiments.configs.{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise ValueError(f"{path}, line {error.lineno}: {error.msg}") from error
    except Exception as error:
        raise ValueError(f"{path} raises {type(error).__name__}: {_first_line(error)}") from error
    if not callable(getattr(module, "get_config", None)):
        raise ValueError(f"{path} has no get_config(scale); see {DEFAULT_CONFIG}")
    try:
        inspect.signature(module.get_config).bind(scale)
    except TypeError:
        raise ValueError(f"{path}: get_config must take the scale; see {DEFAULT_CONFIG}") from None
    try:
        config = module.get_config(scale)
    except Exception as error:
        text = f"{path}: get_config raises {type(error).__name__}: {_first_line(error)}"
        raise ValueError(text) from error
    if not isinstance(config, ConfigDict):
        raise ValueError(
            f"{path}: get_config returns a {type(config).__name__}; return a ConfigDict made by "
            f"settings.base(scale), as {DEFAULT_CONFIG} does"
        )
    known = {name for name, _ in fields(settings.base())}
    for name in known - {name for name, _ in fields(config)}:
        raise ValueError(f"{path}: get_config leaves out {name}; start from settings.base(scale)")
    return config


def _joined(argv: Sequence[str]) -> list[str]:
    """One spelling for all flags: underscores in names, and ``--flag value`` as ``--flag=value``.

    A boolean field takes the next word only if that is a boolean.
    """
    known = dict(fields(settings.base()))
    words, result = list(argv[1:]), [argv[0]]
    while words:
        word = words.pop(0)
        name, equals, value = word.partition("=")
        if name.startswith("--"):
            name = "--" + name[2:].replace("-", "_")
        field = _FIELD_FLAG.match(name)
        takes_value = name in ("--config", "-config", "--workdir", "--data_dir") or (
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
    """``--config.threat.eps=8/255`` with the quotient in its place: radii are written like this."""
    known = dict(fields(settings.base()))

    def computed(argument):
        match = re.fullmatch(r"--?config\.([^=]+)=([0-9.]+)/([0-9.]+)", argument)
        if match is None or match[1] not in known or _field_type(match[1]) is not float:
            return argument
        try:
            return f"--config.{match[1]}={float(match[2]) / float(match[3])!r}"
        except (ValueError, ZeroDivisionError):
            return argument  # refused as no number by the check of types

    return [computed(argument) for argument in argv]


def _check_fields(argv: Sequence[str]) -> None:
    """Names the nearest field before absl says only that a flag is unknown."""
    known = dict(fields(settings.base()))
    for argument in argv[1:]:
        match = _FIELD_FLAG.match(argument)
        if match and match[1] not in known:
            near = _nearest(match[1], known, "--config.") or _nearest_leaf(match[1], known)
            raise ValueError(f"unknown field config.{match[1]}{near}")
        if match and "=" in argument:
            _check_type(match[1], argument.split("=", 1)[1], known[match[1]])
        flag = re.match(r"^--?(\w+)", argument)
        if (
            flag
            and not match
            and flag[1] not in ("config", "workdir", "data_dir", "download", "nodownload")
        ):
            flag_names = ("config", "workdir", "data_dir", "download", "nodownload")
            near = _nearest(flag[1], flag_names, "--") or _nearest_leaf(flag[1], known)
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


def _nearest(name: str, known, prefix: str = "") -> str:
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {prefix}{near[0]}?" if near else ""


def _nearest_leaf(name: str, known) -> str:
    leaves = {full.split(".")[-1]: full for full in known}
    near = difflib.get_close_matches(name.split(".")[-1], list(leaves), n=1, cutoff=0.5)
    return f"; did you mean --config.{leaves[near[0]]}?" if near else ""


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def load_config(method: str, scale: str, dataset: str, **overrides) -> Config:
    """The resolved configuration of ``configs/METHOD.py:SCALE``, for programs and notebooks.

    Args:
        method: stem of a file in ``experiments/configs``.
        scale: "paper", "laptop" or "smoke".
        dataset: name of a data set.
        **overrides: top-level fields to set.

    Returns:
        The configuration.

    Example:
        >>> load_config("at", "smoke", "digits", seed=3).seed
        3
    """
    path = ROOT / "configs" / f"{method}.py"
    if not path.is_file():
        existing = sorted(p.stem for p in path.parent.glob("*.py"))
        raise ValueError(f"unknown method {method!r}{_nearest(method, existing)}")
    config = _load_file(path, scale)
    for name, value in overrides.items():
        if name not in config:
            raise ValueError(f"unknown field {name!r}{_nearest(name, config)}")
        config[name] = value
    return settings.resolve(config, dataset)
