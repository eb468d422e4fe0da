"""Tables of docs/scale.md, from ``batch_norm.json``, ``streaming_cpu.json``, and ``h100.json``."""

import json
import pathlib

from .h100 import table

MARKERS = ("batch norm", "streaming", "h100")
FORMS = {
    "two passes": "two passes (accelerators)",
    "shifted, after 0 minibatches": "shifted by 0, the initial running mean",
    "shifted, after 10 minibatches": "after 10 minibatches",
    "shifted, after 100 minibatches": "after 100",
    "combined": "combined (CPU)",
}


def render(results: pathlib.Path) -> dict[str, str]:
    """The tables whose files exist, as Markdown by marker name."""
    makers = {
        "batch_norm": ("batch norm", _batch_norm),
        "streaming_cpu": ("streaming", _streaming),
        "h100": ("h100", _h100),
    }
    return {
        marker: make(json.loads(path.read_text(encoding="utf-8")))
        for name, (marker, make) in makers.items()
        if (path := results / f"{name}.json").exists()
    }


def _batch_norm(report: dict) -> str:
    errors = {
        (row["form"], row["input_mean"]): row["errors"]["variance"] for row in report["accuracy"]
    }
    lines = [
        f"| mean in standard deviations | {' | '.join(FORMS.values())} |",
        "|---" * (len(FORMS) + 1) + "|",
    ]
    for mean in dict.fromkeys(mean for _, mean in errors):
        cells = [_range(errors[form, mean]) for form in FORMS]
        lines.append(f"| {mean:g} | {' | '.join(cells)} |")
    found = report["collectives"]
    ways = [found[form.split(",")[0]] for form in FORMS]
    cells = [" / ".join(f"{number:g}" for number in way.values()) for way in ways]
    names = " / ".join(ways[0])
    lines.append(f"| collectives per layer, {names} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", _source(report, "batch_norm")])


def _range(error: dict) -> str:
    ends = (f"{error[key]:.1e}".replace("e-0", "e-") for key in ("least", "greatest"))
    return " to ".join(ends)


def _streaming(report: dict) -> str:
    options, found = report["options"], report["throughput of streamed relative to resident"]
    seconds, calls = report["seconds"], report["seconds"]["streamed"]["calls"]
    return (
        f"PreActResNet-18 of width {options['width']}, minibatches of {options['batch_size']}: "
        f"streamed {found['median']:.2f} times as fast as from the device, median of {calls} calls "
        f"of {options['call']} minibatches in turn ({found['least']:.2f} to "
        f"{found['greatest']:.2f}; shortest calls {seconds['streamed']['least']:.2f} s and "
        f"{seconds['resident']['least']:.2f} s).\n\n{_source(report, 'streaming_cpu')}"
    )


def _h100(report: dict) -> str:
    commits = {report["environment"]["commit"]} | {
        found["commit"] for found in report["programs"].values()
    }
    found = report["environment"] | {"commit": ", ".join(sorted(commits))}
    return f"{table.markdown(report).strip()}\n\n{_source({'environment': found}, 'h100')}"


def _source(report: dict, name: str) -> str:
    found = report["environment"]
    where = f"{found['device']}, {found['date']}"
    return f"`benchmarks/results/{name}.json`: commit {found['commit']}; {where}."
