"""Makes the registry of RobustBench's models, and its list of ImageNet images, from public files.

    python -m benchmarks.zoo_registry --robustbench=CHECKOUT            # writes it
    python -m benchmarks.zoo_registry --robustbench=CHECKOUT --check    # fails if it would change

CHECKOUT has RobustBench's README.md (ids, papers, accuracies), model_info (eps, extra data, the
figure of AutoAttack where another attack is stronger) and the package, which must be importable
with its requirements (``pip install robustbench==1.1.1``). The networks are made without their
numbers, on PyTorch's "meta" device: their tensors' names and shapes are read off, and their
normalization is measured at the input of their first convolution. Leaderboards of corruptions are
left out, since their figures are not AutoAttack's.

The files are jaxadv/models/zoo/registry.json and experiments/data/imagenet_robustbench.json.
"""

import argparse
import json
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from experiments.cli import process
from experiments.cli.options import Parser, folder
from experiments.run.checkpoints import write_atomically

from . import _zoo_networks

ROOT = Path(__file__).parents[1]
REGISTRY = ROOT / "jaxadv" / "models" / "zoo" / "registry.json"
IMAGES = ROOT / "experiments" / "data" / "imagenet_robustbench.json"
VERSION = "1.1.1"
# Heading and sub-heading of a table in the README, its data set, threat and number of test images.
LEADERBOARDS = {
    ("CIFAR-10", "Linf"): ("cifar10", "linf", "8/255", 10_000),
    ("CIFAR-10", "L2"): ("cifar10", "l2", "0.5", 10_000),
    ("CIFAR-100", "Linf"): ("cifar100", "linf", "8/255", 10_000),
    ("ImageNet", "Linf"): ("imagenet", "linf", "4/255", 5_000),
}
_FOLDERS = {"linf": "Linf", "l2": "L2"}
# An entry whose file has another name: the same paper, network, and accuracies.
_RENAMED = {("cifar10", "Chen2021LTD_WRN34_10"): "Chen2021Low_WRN34_10"}


def published(readme: str) -> Iterator[dict[str, Any]]:
    """The rows of the README's tables.

    Args:
        readme: its text.

    Yields:
        id, dataset, threat, eps, images, paper, link, clean, robust (percent), described, venue.
    """
    heading, leaderboard = "", None
    for line in readme.splitlines():
        if line.startswith("### "):
            heading, leaderboard = line[4:].strip(), None
        elif line.startswith("#### "):
            leaderboard = LEADERBOARDS.get((heading, line[5:].split(",")[0].strip()))
        elif leaderboard and (match := re.match(r"\|\s*<sub>\*\*\d+\*\*</sub>\s*\|(.+)\|", line)):
            name, paper, clean, robust, described, venue = map(_plain, match[1].split(" | "))
            title, link = re.fullmatch(r"\[\s*(.+?)\s*\]\((.+)\)", paper).groups()  # pyright: ignore
            dataset, threat, eps, images = leaderboard
            yield {
                "id": name, "dataset": dataset, "threat": threat, "eps": eps, "images": images,
                "paper": title, "link": link, "venue": None if venue == "N/A" else venue,
                "described": described, "clean": _percent(clean), "robust": _percent(robust),
            }  # fmt: skip


def _plain(cell: str) -> str:
    """The text of a cell without its markup."""
    text = re.sub(r"<br\s*/?>", " ", cell)
    text = re.sub(r"<[^>]+>", "", text).strip()
    return re.sub(r"\s+", " ", text.strip("*").strip())


def _percent(text: str) -> float:
    return float(text.removesuffix("%"))


def information(text: str) -> dict[str, str]:
    """The fields of a model_info file; some of them are not quite JSON.

    Example:
        >>> information('{"eps": "0.5", "link": https://a.b, "additional_data": true,}')["eps"]
        '0.5'
    """
    pairs = re.findall(r'"(\w+)":\s*("(?:[^"\\]|\\.)*"|[^,}\s]+)', text)
    return {name: value.strip('"') for name, value in pairs}


def entries(checkout: Path) -> Iterator[dict[str, Any]]:
    """The entries of the registry, in the order of the leaderboards."""
    readme = (checkout / "README.md").read_text(encoding="utf-8")
    for row in published(readme):
        place = checkout / "model_info" / row["dataset"] / _FOLDERS[row["threat"]]
        file = place / f"{_RENAMED.get((row['dataset'], row['id']), row['id'])}.json"
        found = information(file.read_text(encoding="utf-8")) if file.is_file() else {}
        robust, attacked = row.pop("robust"), row["clean"]
        # The README has the best known attack's figure, a stale file the one of an old version.
        stronger = "external" in found and float(found["external"]) == robust
        attacked = float(found["autoattack_acc"]) if stronger else robust
        extra = {"true": True, "false": False}.get(found.get("additional_data", ""))
        yield row | {
            "eps": found.get("eps", row["eps"]),
            "autoattack": attacked,
            "best_known": robust,
            "extra_data": extra,
            **_zoo_networks.describe(row["id"], row["dataset"], row["threat"]),
        }


def render(checkout: Path) -> str:
    """The text of the registry: one line for each entry."""
    lines = [json.dumps(entry, ensure_ascii=False) for entry in entries(checkout)]
    source = {
        "package": f"robustbench {VERSION}",
        "files": "README.md, model_info/*/*/*.json, robustbench/model_zoo",
        "made_by": "python -m benchmarks.zoo_registry --robustbench=CHECKOUT",
    }
    head = json.dumps(source, ensure_ascii=False)
    return f'{{"source": {head},\n"entries": [\n' + ",\n".join(lines) + "\n]}\n"


def render_images(checkout: Path) -> str:
    """The text of the list of ImageNet images: numbers of the validation set, and labels."""
    folder = checkout / "robustbench" / "helper_files"
    synsets = json.loads((folder / "imagenet_class_to_id_map.json").read_text(encoding="utf-8"))
    lines = (folder / "imagenet_test_image_ids.txt").read_text(encoding="utf-8").split()
    matches = [re.fullmatch(r"(n\d{8})/ILSVRC2012_val_(\d{8})\.JPEG", line) for line in lines]
    found = [(int(match[2]), synsets[match[1]]) for match in matches if match]
    if len(found) != len(lines):
        raise ValueError(f"{folder}: a line is not SYNSET/ILSVRC2012_val_NUMBER.JPEG")
    source = {
        "package": f"robustbench {VERSION}",
        "file": "robustbench/helper_files/imagenet_test_image_ids.txt",
        "license": "MIT, (c) 2020 Francesco Croce, Maksym Andriushchenko, Vikash Sehwag",
        "made_by": "python -m benchmarks.zoo_registry --robustbench=CHECKOUT",
    }
    columns = zip(("numbers", "labels"), zip(*found, strict=True), strict=True)
    parts = [f'"{name}": [\n{textwrap.fill(str(v)[1:-1], 100)}\n]' for name, v in columns]
    return f'{{"source": {json.dumps(source)},\n' + ",\n".join(parts) + "}\n"


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m benchmarks.zoo_registry",
        description="Makes the registry of RobustBench's models from its public files.",
    )
    parser.add_argument(
        "--robustbench", type=folder, required=True, help="checkout of RobustBench's repository"
    )
    parser.add_argument("--check", action="store_true", help="fail if a file would change")
    return parser


def _main(options: argparse.Namespace) -> None:
    if not (options.robustbench / "README.md").is_file():
        raise FileNotFoundError(f"--robustbench={options.robustbench}: no README.md in it")
    sys.path.insert(0, str(options.robustbench))
    files = {REGISTRY: render(options.robustbench), IMAGES: render_images(options.robustbench)}
    for path, text in files.items():
        if not options.check:
            write_atomically(path, text.encode())
            print(f"written: {path}")
        elif text != path.read_text(encoding="utf-8"):
            raise ValueError(f"{path} differs from {options.robustbench}; run without --check")
        else:
            print(f"{path} is up to date")


def main() -> None:
    """The command line."""
    process.execute(lambda: _main(_parser().parse_args()))


if __name__ == "__main__":
    main()
