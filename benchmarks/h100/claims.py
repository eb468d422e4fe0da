"""What is said about the compiled programs, each statement as a check of what was read."""

from collections.abc import Iterator

from .programs import KERNELS

ATTACK = "main/n/{}"  # the loop of PGD steps inside the loop of minibatches
# Bytes a device, an upper limit of arguments + temporaries with 128 images a device.
MEMORY = {
    "at": 1.0e9,
    "at_4": 1.1e9,
    "at_bfloat16": 0.7e9,
    "entropy_sgd": 1.2e9,
    "wrn": 4.2e9,
    "wrn_bfloat16": 2.5e9,
    "apgd-ce_4": 1.6e9,
    "fab-t_4": 1.6e9,
    "square_4": 0.6e9,
}
BATCH_NORMS, LAYERS_4_KB = 17, 4096
# Programs that differ in a number of steps alone, and the loop with that many trips.
PAIRS = {
    ("tiny_at", "tiny_at_20_steps"): ("main/n/10", "main/n/20"),
    ("tiny_entropy_sgd", "tiny_entropy_sgd_n_in_40"): ("main/20", "main/40"),
}


def broken(programs: dict[str, dict]) -> list[str]:
    """The statements that do not hold, a line each."""
    return [line for check in (_each, _several_devices, _sizes) for line in check(programs)]


def memory(found: dict) -> int:
    """Bytes a device that a program needs: arguments, temporaries, and what is not donated."""
    sizes = found["memory"]
    return sizes["arguments"] + sizes["temporaries"] + sizes["outputs"] - sizes["aliased"]


def collectives(found: dict, place: str) -> dict[str, dict[str, int]]:
    """The collectives of one trip of a loop."""
    return found["loops"].get(place, {}).get("collectives", {})


def _each(programs: dict[str, dict]) -> Iterator[str]:
    for name, found in programs.items():
        spec = found["spec"]
        if found["data_set_copies"]:
            yield f"{name} copies the data set: {found['data_set_copies']}"
        if found["float64"]:
            yield f"{name} has {found['float64']} arrays of float64"
        if found["callbacks"]:
            yield f"{name} calls the host: {found['callbacks']}"
        if memory(found) > MEMORY.get(name, 80e9):
            yield f"{name} needs {memory(found):,} bytes a device, more than {MEMORY[name]:,.0f}"
        loops = set(found["loops"])
        if spec["what"] in KERNELS:
            if not any(place.endswith("/n") for place in loops):
                yield f"{name} has no loop over the steps of the attack: {sorted(loops)}"
        elif spec["what"] == "entropy_sgd":
            place = f"main/{spec['n_in']}/{spec['num_steps']}"
            if place not in loops:
                yield f"{name} has no loop of {place}: {sorted(loops)}"
        elif ATTACK.format(spec["num_steps"]) not in loops:
            yield f"{name} has no loop of {spec['num_steps']} PGD steps: {sorted(loops)}"


def _several_devices(programs: dict[str, dict]) -> Iterator[str]:
    for name, found in programs.items():
        spec = found["spec"]
        kinds = {kind for place in found["loops"] for kind in collectives(found, place)}
        alone = spec["devices"] == 1 or spec["what"] in KERNELS
        if kinds - (set() if alone else {"all-reduce"}):
            yield f"{name} communicates by {sorted(kinds)}"
        if alone or spec["network"] != "preact_resnet18":
            continue
        outer = f"main/{spec['n_in']}" if spec["what"] == "entropy_sgd" else "main/n"
        inner = collectives(found, f"{outer}/{spec['num_steps']}").get("all-reduce")
        # mean and variance, forward and backward
        shared = spec["attack_bn"] == "train" and spec["sync"]
        expected = 4 * BATCH_NORMS if shared else 0
        number = inner["number"] if inner else 0
        if number != expected:
            yield f"{name} has {number} all-reduces in a PGD step, not {expected}"
        if inner and inner["bytes"] > expected * LAYERS_4_KB:
            yield f"{name} reduces {inner['bytes']:,} bytes in a PGD step: a gradient of weights?"
        gradient = collectives(found, outer)["all-reduce"]["bytes"]
        reductions = collectives(found, outer)["all-reduce"]["number"]
        # the gradient, and the clean pass's running statistics
        if not spec["sync"] and reductions != 2:
            yield f"{name} reduces {reductions} times a minibatch, not twice"
        if not 44e6 < gradient < 48e6:
            yield f"{name} reduces {gradient:,} bytes a minibatch, not one gradient of 45 MB"


def _sizes(programs: dict[str, dict]) -> Iterator[str]:
    for names, places in PAIRS.items():
        if not set(names) <= set(programs):
            continue
        few, many = (programs[name] for name in names)
        if abs(many["instructions"] - few["instructions"]) > 0.02 * few["instructions"]:
            yield (
                f"{names[1]} has {many['instructions']} instructions, {names[0]} "
                f"{few['instructions']}: a loop is unrolled"
            )
        for found, name, place in zip((few, many), names, places, strict=True):
            if place not in found["loops"]:
                yield f"{name} has no loop {place}: {sorted(found['loops'])}"
