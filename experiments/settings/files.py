"""Configuration files: finding them, loading them, and naming their run directories."""

import ast
import importlib.util
import inspect
import re
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from jaxadv.checks import check_choice

from ..cli.options import nearest
from .fields import Config, base, flatten
from .recipes import SCALES
from .resolve import resolve

ROOT = Path(__file__).parents[1]
DEFAULT_CONFIG = "configs/at.py"
PATH_FLAG = re.compile(r"^--?config(=|$)")


def resolve_argv(argv: Sequence[str], roots: Sequence[Path]) -> list[str]:
    """Resolves the path in ``--config=PATH[:SCALE]`` to an existing file.

    Args:
        argv: command line, program name first.
        roots: folders to search for a relative path, in order, after the current one.

    Returns:
        The command line with an absolute path; unchanged if there is no ``--config``.

    Raises:
        FileNotFoundError: if the file is in none of the folders; lists the available configs.
    """
    result = list(argv)
    for position, argument in enumerate(argv):
        if not PATH_FLAG.match(argument):
            continue
        if "=" not in argument and position + 1 >= len(argv):
            raise FileNotFoundError("--config needs a file, for example --config=configs/at.py")
        value = argument.split("=", 1)[1] if "=" in argument else argv[position + 1]
        path, separator, scale = value.partition(".py:")
        path = path + ".py" if separator else path
        found = next((p for p in (Path.cwd(), *roots) if (p / path).is_file()), None)
        if found is None:
            existing = sorted(f"configs/{p.name}" for p in (ROOT / "configs").glob("*.py"))
            near = nearest(path, existing) or f"; available: {', '.join(existing)}"
            raise FileNotFoundError(f"no config file {path!r}{near}")
        check_choice("scale", scale or "paper", SCALES)
        resolved = str((found / path).resolve()) + (f":{scale}" if separator else "")
        if "=" in argument:
            result[position] = "--config=" + resolved
        else:
            result[position + 1] = resolved
    return result


def load_config(method: str, scale: str, dataset: str, **overrides) -> Config:
    """The resolved configuration of ``configs/METHOD.py:SCALE``, for programs and notebooks.

    Args:
        method: stem of a file in ``experiments/configs``.
        scale: "paper", "cpu" (not for digits and ImageNet), "laptop" or "smoke".
        dataset: name of a data set.
        **overrides: fields to set; ``**{"entropy.n_in": 5}`` for one of a section.

    Returns:
        The configuration.

    Example:
        >>> load_config("at", "smoke", "digits", seed=3).seed
        3
    """
    path = ROOT / "configs" / f"{method}.py"
    if not path.is_file():
        existing = sorted(p.stem for p in path.parent.glob("*.py"))
        raise ValueError(f"unknown method {method!r}{nearest(method, existing)}")
    config = load_file(path, scale)
    known = dict(flatten(config))
    for name, value in overrides.items():
        if name not in known:
            raise ValueError(f"unknown field {name!r}{nearest(name, known)}")
        *section, field = name.split(".")
        (config[section[0]] if section else config)[field] = value
    return resolve(config, dataset)


def default_workdir(config: Config) -> Path:
    """The default run directory: runs/DATASET-SCALE/METHOD/seedN."""
    return Path("runs") / f"{config.dataset}-{config.scale}" / config.method / f"seed{config.seed}"


def load_file(path: Path, scale: str) -> Config:
    """Calls ``get_config(scale)`` of a config file."""
    spec = importlib.util.spec_from_file_location(f"experiments.configs.{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise ValueError(f"{path}, line {error.lineno}: {error.msg}") from error
    except Exception as error:
        raise ValueError(f"{path} raises {type(error).__name__}: {first_line(error)}") from error
    if not callable(getattr(module, "get_config", None)):
        raise ValueError(f"{path} has no get_config(scale); see {DEFAULT_CONFIG}")
    try:
        inspect.signature(module.get_config).bind(scale)
    except TypeError:
        raise ValueError(
            f"{path}: get_config must accept the scale; see {DEFAULT_CONFIG}"
        ) from None
    try:
        config = module.get_config(scale)
    except Exception as error:
        text = f"{path}: get_config raises {type(error).__name__}: {first_line(error)}"
        raise ValueError(text) from error
    if not isinstance(config, ConfigDict):
        raise ValueError(
            f"{path}: get_config returns a {type(config).__name__}; return a ConfigDict created by "
            f"settings.base(scale), as {DEFAULT_CONFIG} does"
        )
    known = {name for name, _ in flatten(base())}
    for name in known - {name for name, _ in flatten(config)}:
        raise ValueError(f"{path}: get_config is missing {name}; start from settings.base(scale)")
    return config


def summary(path: Path) -> str:
    """A config file's one-line description: the first line of its docstring."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.partition("\n")[0]


def first_line(error: BaseException) -> str:
    """An error as one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
