"""The default tests on other versions: the newest that pip resolves, and the lower bounds.

    python -m tests.matrix                     # Python 3.12, 3.13, and the lower bounds on this one
    python -m tests.matrix lower tests/optim   # only the lower bounds, and only these tests

Each combination has a virtual environment in ``.matrix``, which stays for the next time; delete it
to resolve again. A Python that neither uv, pyenv nor the PATH has is reported as not run.
"""

import configparser
import json
import pathlib
import re
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]
FOLDER = ROOT / ".matrix"
PYTHONS = ("3.12", "3.13")
EXTRAS = ("experiments", "records")
TOOLS = ("test", "docs")  # no part of what a user has: their newest versions serve
SHOWN = ("jax", "flax", "optax", "numpy", "scipy")


def find(version: str) -> str | None:
    """An interpreter of this version."""
    asked = []
    if shutil.which("uv"):
        asked.append(["uv", "python", "find", "--no-python-downloads", version])
    if shutil.which("pyenv"):
        prefix = subprocess.run(
            ["pyenv", "latest", version], capture_output=True, text=True
        ).stdout.strip()
        asked.append(["pyenv", "prefix", prefix or version])
    for command in asked:
        done = subprocess.run(command, capture_output=True, text=True)
        path = pathlib.Path(done.stdout.strip())
        path = path / "bin" / "python" if path.is_dir() else path
        if done.returncode == 0 and path.is_file():
            return str(path)
    return shutil.which(f"python{version}")


def requirements(lower: bool) -> list[str]:
    """Those of setup.cfg, as they are or each at its lower bound."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    extras = config["options.extras_require"]
    used = [config["options"]["install_requires"], *(extras[extra] for extra in EXTRAS)]
    found = []
    for texts, relation in (
        (used, "==" if lower else ">="),
        ([extras[tool] for tool in TOOLS], ">="),
    ):
        lines = [line for text in texts for line in text.splitlines() if line and line[0] != "#"]
        found += [line.replace(" >= ", relation) for line in lines]
    return found


def environment(name: str, python: str, lower: bool) -> pathlib.Path:
    """Its interpreter; installs what is missing."""
    folder = FOLDER / name
    interpreter = folder / "bin" / "python"
    if not (folder / ".ready").is_file():
        subprocess.run([python, "-m", "venv", "--clear", folder], check=True)
        pip = [interpreter, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, *requirements(lower), "setuptools>=77"], check=True)
        subprocess.run([*pip, "--no-deps", "--no-build-isolation", "-e", ROOT], check=True)
        (folder / ".ready").touch()
    return interpreter


def versions(interpreter: pathlib.Path) -> str:
    """What is installed."""
    code = (
        "import importlib.metadata as m, json, platform; "
        f"print(json.dumps([['Python', platform.python_version()]] + "
        f"[[n, m.version(n)] for n in {SHOWN}]))"
    )
    done = subprocess.run([interpreter, "-c", code], capture_output=True, text=True, check=True)
    return ", ".join(f"{name} {version}" for name, version in json.loads(done.stdout))


def main(words: list[str]) -> int:
    """Prints a line for each combination; 1 if one fails, or none could run."""
    names = [word for word in words if word in (*PYTHONS, "lower")] or [*PYTHONS, "lower"]
    tests = [word for word in words if word not in names] or ["-n", "auto"]
    lines, failed, ran = [], False, False
    for name in names:
        lower = name == "lower"
        python = sys.executable if lower else find(name)
        if python is None:
            lines.append(f"{name}: NOT RUN, no such Python in uv, pyenv or the PATH")
            continue
        try:
            interpreter = environment(name, python, lower)
        except subprocess.CalledProcessError as error:
            lines.append(f"{name}: FAILED to install (exit status {error.returncode})")
            failed = True
            continue
        command = [interpreter, "-m", "pytest", *tests]
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        print(done.stdout, flush=True)
        counts = re.findall(r"^.*\b\d+ (?:passed|failed|error).*$", done.stdout, re.MULTILINE)
        outcome = "passed" if done.returncode == 0 else "FAILED"
        lines.append(f"{name}: {outcome}, {counts[-1] if counts else ''} ({versions(interpreter)})")
        failed, ran = failed or done.returncode != 0, True
    print("\n".join(lines))
    return int(failed or not ran)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
