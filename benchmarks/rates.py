r"""Floating-point operations a second: convolutions and a whole network beside a matrix product.

    taskset -c 0 python -m benchmarks.rates --output=rates_one_core.json
    python -m benchmarks.rates --output=rates_two_cores.json

Both sides use the cores that the process may run on. A 3x3 convolution at each resolution of
PreActResNet-18, forward; the network in evaluation mode, and with the gradient in its images; and
the product of two square matrices. All calls take turns, PyTorch's too if it is installed: NCHW
("PyTorch") and channels last. Operations are the compiler's count before it optimizes, in which a
convolution is a sum of products; faster forms of it (`jaxadv/_winograd.py`) compute fewer.
"""

import importlib.util
import os
import statistics

import jax
import jax.numpy as jnp
import numpy as np

from experiments.cli.options import Parser, integers
from jaxadv import models

from . import _torch_resnet
from ._report import provenance, save
from ._timing import alternate, operations

LAYOUTS = {"PyTorch": "contiguous_format", "PyTorch, channels last": "channels_last"}


def parse(arguments=None):
    """The command line."""
    parser = Parser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--widths", type=integers, default=[16, 64], help="of PreActResNet-18")
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--image_size", type=int, default=32)
    parser.add_argument("--product", type=int, default=2048, help="rows of the matrix product")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--output", help="JSON")
    return parser.parse_args(arguments)


def work(options) -> dict[str, tuple]:
    """What is measured, by title: a function in JAX, its argument, and the same in PyTorch."""
    rng = np.random.default_rng(0)
    normal = lambda *shape: rng.normal(size=shape).astype(np.float32)
    square = normal(options.product, options.product)
    found: dict[str, tuple] = {
        f"product of matrices of {options.product:,} rows": (lambda a: a @ a, square, _product)
    }
    for stage in range(4):
        for width in options.widths:
            channels, size = width << stage, max(options.image_size >> stage, 1)
            kernel = normal(3, 3, channels, channels)
            conv = lambda x, kernel=kernel: models.conv2d(x, jnp.asarray(kernel), padding=1)
            title = f"3x3 convolution, {channels} channels, {size}x{size}"
            x = normal(options.batch_size, size, size, channels)
            found[title] = (conv, x, _convolution(kernel))
    for width in options.widths:
        module = models.preact_resnet18(10, width=width)
        shape = (options.batch_size, options.image_size, options.image_size, 3)
        images = rng.uniform(size=shape).astype(np.float32)
        variables = jax.jit(module.init)(jax.random.key(0), images)
        apply = lambda x, module=module, variables=variables: module.apply(variables, x)
        total = lambda x, apply=apply: jnp.sum(apply(x))
        title = f"PreActResNet-18 of width {width}"
        found[f"{title}, forward"] = (apply, images, _resnet(module, variables, False))
        both = _resnet(module, variables, True)
        found[f"{title}, forward and backward to the images"] = (jax.grad(total), images, both)
    return found


def _product(torch, a):
    return lambda: a @ a


def _convolution(kernel: np.ndarray):
    def make(torch, x):
        weight = torch.from_numpy(np.ascontiguousarray(kernel.transpose(3, 2, 0, 1)))
        weight = weight.contiguous(memory_format=_format(torch, x))
        return lambda: torch.nn.functional.conv2d(x, weight, padding=1)

    return make


def _resnet(module, variables, backward: bool):
    def make(torch, x):
        tensors = _torch_resnet.weights(module, variables)
        mean, std = _torch_resnet.constants(module)

        def forward():
            return _torch_resnet.forward(tensors, x, mean, std)

        def gradient():
            with torch.enable_grad():
                given = x.detach().requires_grad_()
                total = _torch_resnet.forward(tensors, given, mean, std).sum()
                return torch.autograd.grad(total, given)

        return gradient if backward else forward

    return make


def _format(torch, x):
    return torch.contiguous_format if x.is_contiguous() else torch.channels_last


def rivals(function, argument, peer, torch) -> tuple[dict, float]:
    """Calls by name, and the floating-point operations of one."""
    x = jnp.asarray(argument)
    compiled = jax.jit(function).lower(x).compile()
    calls: dict = {"jaxadv": lambda: jax.block_until_ready(compiled(x))}
    if torch is not None:
        for name, layout in LAYOUTS.items():
            if argument.ndim == 2:
                tensor = torch.from_numpy(argument)
            else:
                tensor = torch.from_numpy(np.ascontiguousarray(argument.transpose(0, 3, 1, 2)))
                tensor = tensor.contiguous(memory_format=getattr(torch, layout))
            if argument.ndim == 4 or name == "PyTorch":
                calls[name] = peer(torch, tensor)
    return calls, operations(function, x)


def measure(options) -> dict:
    """GFLOP/s of everything, by title and side."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    torch = None
    if importlib.util.find_spec("torch"):
        import torch  # pyright: ignore[reportMissingImports]

        torch.set_num_threads(cores)
        torch.set_grad_enabled(False)
    everything, counts = {}, {}
    for title, (function, argument, peer) in work(options).items():
        calls, counts[title] = rivals(function, argument, peer, torch)
        everything |= {(title, side): call for side, call in calls.items()}
    times = alternate({"\n".join(name): call for name, call in everything.items()}, options.repeats)
    rows = []
    for title, flop in counts.items():
        rates = {
            side: _rate([flop / seconds / 1e9 for seconds in times[f"{title}\n{side}"]])
            for name, side in everything
            if name == title
        }
        rows.append({"what": title, "mflop": flop / 1e6, "gflops": rates})
        shown = ", ".join(f"{side} {rate['median']:.0f}" for side, rate in rates.items())
        print(f"{title}: {shown} GFLOP/s", flush=True)
    return {"torch": torch and torch.__version__, "cores": cores, "rows": rows}


def _rate(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "least": min(values), "greatest": max(values)}


def main(arguments=None) -> dict:
    """Runs the measurement and returns the report it writes."""
    options = parse(arguments)
    report = provenance(options) | {"load_average": os.getloadavg()[0]} | measure(options)
    save(report, options.output)
    return report


if __name__ == "__main__":
    main()
