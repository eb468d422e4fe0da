"""The tables of docs/scale.md from what was read: memory, collectives, and computed times."""

from collections.abc import Iterator

from . import claims
from .programs import KERNELS, NUM_IMAGES, ROWS

# NVIDIA's data sheet of the H100 SXM, dense products: float32 by default runs as TF32.
PEAK = {"float32": 494.7e12, "bfloat16": 989.4e12}  # FLOP/s
BANDWIDTH = 3.35e12  # bytes/s of device memory
DEVICE_MEMORY = 80e9
DEFAULT_SHARE = 0.75  # of the device's memory, which JAX reserves unless told otherwise
# Links a device in one direction, and the latency assumed for one small all-reduce.
LINKS = {
    8: ("NVLink 4", 450e9, 15e-6),
    64: ("InfiniBand NDR, 400 Gbit/s a GPU", 50e9, 40e-6),
}


def markdown(report: dict) -> str:
    """All tables, each with a line that says where its numbers come from."""
    programs = report["programs"]
    parts = [_compiled(programs), _batches(programs), _pod(programs)]
    left = report["not_compiled"]
    end = f"Not compiled: {', '.join(f'`{name}`' for name in left)}.\n" if left else ""
    return "\n".join([part for part in parts if part] + [end])


def trips(found: dict, place: str) -> int:
    """How often a loop's body runs a minibatch, or a step of an attack of AutoAttack."""
    steps = place.split("/")[1:]
    number = 1
    for step in steps:
        number *= int(step) if step.isdigit() else 1
    if found["spec"]["what"] == "entropy_sgd" and number > 1:
        number //= found["spec"]["n_in"]
    return number


def inside(found: dict) -> dict[str, dict]:
    """The loops that run once or more a minibatch (a step), without what runs once a call."""
    what = found["spec"]["what"]
    start = f"main/{found['spec']['n_in']}" if what == "entropy_sgd" else "main/n"
    return {place: row for place, row in found["loops"].items() if place.startswith(start)}


def total(found: dict, name: str) -> int:
    """Operations, bytes or flops a minibatch (or a step of an attack of AutoAttack)."""
    return sum(row[name] * trips(found, place) for place, row in inside(found).items())


def reductions(found: dict) -> tuple[int, int]:
    """Number and bytes of the all-reduces a minibatch."""
    number = size = 0
    for place in inside(found):
        row = claims.collectives(found, place).get("all-reduce", {"number": 0, "bytes": 0})
        number += row["number"] * trips(found, place)
        size += row["bytes"] * trips(found, place)
    return number, size


def seconds(found: dict) -> float:
    """Least time of a minibatch (a step): each loop by its products or its memory traffic."""
    peak = PEAK[found["spec"]["dtype"]]
    return sum(
        trips(found, place) * max(row["flops"] / peak, row["bytes"] / BANDWIDTH)
        for place, row in inside(found).items()
    )


def largest_batch(one: dict, two: dict, limit: float) -> tuple[int, float, float]:
    """Images that fit by a line through two compiled batch sizes; its offset and slope."""
    sizes = [found["spec"]["batch"] for found in (one, two)]
    slope = (claims.memory(two) - claims.memory(one)) / (sizes[1] - sizes[0])
    offset = claims.memory(one) - slope * sizes[0]
    return int((limit - offset) / slope), offset, slope


def _compiled(programs: dict[str, dict]) -> str:
    rows = [
        "Read from the compiler's output for an H100; nothing was run. A minibatch of training, a "
        f"step of an attack ({ROWS} images a device).\n",
        "| program | devices | images a device | arguments / temporaries, MB a device | "
        "loops | all-reduces | TFLOP | GB moved |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, found in programs.items():
        if found["spec"]["network"] == "tiny":
            continue
        spec, sizes = found["spec"], found["memory"]
        number, size = reductions(found)
        images = ROWS if spec["what"] in KERNELS else spec["batch"]
        loops = ", ".join(sorted(place.removeprefix("main/") for place in inside(found)))
        reduced = f"{number} ({size / 1e6:.1f} MB)" if number else "0"
        rows.append(
            f"| {_title(name, spec)} | {spec['devices']} | {images} | "
            f"{sizes['arguments'] / 1e6:,.0f} / {sizes['temporaries'] / 1e6:,.0f} | {loops} | "
            f"{reduced} | {total(found, 'flops') / 1e12:.2f} | {total(found, 'bytes') / 1e9:.1f} |"
        )
    return "\n".join(rows) + "\n"


def _batches(programs: dict[str, dict]) -> str:
    rows = []
    for dtype, names in _pairs(programs):
        one, two = (programs[name] for name in names)
        most, offset, slope = largest_batch(one, two, DEVICE_MEMORY)
        default = largest_batch(one, two, DEFAULT_SHARE * DEVICE_MEMORY)[0]
        rows.append(
            f"| {dtype} | {offset / 1e9:.2f} GB + {slope / 1e6:.2f} MB an image | {most:,} | "
            f"{default:,} |"
        )
    if not rows:
        return ""
    head = [
        "Computed: the largest batch of AT on WRN-34-10 that fits 80 GB of one H100, by a line "
        f"through two compiled batch sizes (128 and 256){_checked(programs)}. The compiler chose "
        "convolutions without scratch memory; those that it tries out on a real device may use "
        "more.\n",
        "| computation | memory | images in 80 GB | in the 75 % that JAX reserves |",
        "|---|---|---|---|",
    ]
    return "\n".join(head + rows) + "\n"


def _checked(programs: dict[str, dict]) -> str:
    """How far the line is from a third size."""
    if not {"wrn", "wrn_256", "wrn_2048"} <= set(programs):
        return ""
    _, offset, slope = largest_batch(programs["wrn"], programs["wrn_256"], DEVICE_MEMORY)
    batch, real = programs["wrn_2048"]["spec"]["batch"], claims.memory(programs["wrn_2048"])
    off = (offset + slope * batch) / real - 1
    return f"; at {batch:,} images in float32, which were compiled too, it is off by {off:+.1%}"


def _pairs(programs: dict[str, dict]) -> Iterator[tuple[str, tuple[str, str]]]:
    for dtype, name in (("float32", "wrn"), ("bfloat16", "wrn_bfloat16")):
        if {name, f"{name}_256"} <= set(programs):
            yield dtype, (name, f"{name}_256")


def _pod(programs: dict[str, dict]) -> str:
    rows = []
    for name, found in programs.items():
        spec = found["spec"]
        if spec["network"] == "tiny" or spec["what"] in KERNELS or spec["batch"] != 128:
            continue
        number, size = reductions(found)
        alone = seconds(found)
        cells = [_speed(1, found, alone)]
        for devices, (_, link, latency) in LINKS.items():
            moved = 2 * (devices - 1) / devices * size / link
            time = alone + moved + number * latency
            cells.append(_speed(devices, found, time) if spec["devices"] > 1 else "")
        rows.append(f"| {_title(name, spec)} | " + " | ".join(cells) + " |")
    if not rows:
        return ""
    links = "; ".join(
        f"{devices} devices: {name}, {link / 1e9:.0f} GB/s, {latency * 1e6:.0f} us a reduction"
        for devices, (name, link, latency) in LINKS.items()
    )
    peaks = ", ".join(f"{peak / 1e12:.0f} in {dtype}" for dtype, peak in PEAK.items())
    head = [
        "Computed by a cost model, not measured: least times with 128 images a device, whatever "
        "the number of devices. Each loop takes the longer of its FLOP at the data sheet's peak "
        f"(TFLOP/s: {peaks}; float32 is TF32) and its bytes at {BANDWIDTH / 1e12:.2f} TB/s "
        "(operands and results of every kernel, no cache), and launches are free. All-reduces add "
        f"2 (n-1)/n bytes over the link and a latency each, not overlapped ({links}). "
        "The latencies are assumptions. Epoch: CIFAR-10.\n",
        "| program | " + " | ".join(f"{n} x H100" for n in (1, *LINKS)) + " |",
        "|---|" + "---|" * (1 + len(LINKS)),
    ]
    return "\n".join(head + rows) + "\n"


def _speed(devices: int, found: dict, time: float) -> str:
    rate = devices * found["spec"]["batch"] / time
    return f"{time * 1e3:.1f} ms, {rate:,.0f} images/s, {NUM_IMAGES / rate:.1f} s an epoch"


def _title(name: str, spec: dict) -> str:
    network = {"wrn34_10": "WRN-34-10"}.get(spec["network"], "PreActResNet-18")
    titles = {"at": "AT", "awp": "AWP", "trades": "TRADES", "entropy_sgd": "AT, EntropySGD"}
    what = titles.get(spec["what"], spec["what"])
    bn = "" if spec["sync"] else ", bn.sync=false"
    if spec["attack_bn"] == "eval":
        bn += ", BatchNorm in eval mode in the attack, no clean pass"
    return f"{what}, {network}, {spec['dtype']}{bn} (`{name}`)"
