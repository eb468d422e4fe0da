r"""Times adversarial training against plain PyTorch, on CPU or GPU.

    python -m benchmarks.training --width=16 --batch_size=128
    python -m benchmarks.training --width=64 --batch_size=32 --methods=at

PreActResNet-18 on 32x32 images, float32, PGD-10 in train mode and one step: adversarial training
with SGD (at), with adversarial weight perturbation (awp), and an outer step of EntropySGD on four
minibatches (ensgd). Both sides start from the same weights, use the same minibatches and alternate
in one process, two calls each, of which the second counts, as if a side ran alone, after a check
that their gradients agree on one minibatch. The first call compiles and is reported separately. The
PyTorch side is ``_torch_training.py``; ``--channels_last`` sets its memory format. "torch.compile"
is the same with its network compiled by Inductor, which needs a C++ compiler; ``--no-compile``
leaves it out. ``--profile`` traces two more calls of each, see ``_trace.py``.
"""

import jax
import jax.numpy as jnp
import numpy as np
import torch  # pyright: ignore[reportMissingImports]

from experiments.cli.options import Parser
from jaxadv import models, objectives, optim, training

from . import _torch_resnet, _trace
from ._report import provenance, save, use_devices
from ._timing import alternate, ratio, summary
from ._torch_training import Trainer

METHODS = ("at", "awp", "ensgd")
N_IN = 4
GAMMA = 0.01


def parse(arguments=None):
    """The command line."""
    parser = Parser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--width", type=int, default=16, help="64 is the full network")
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--num_steps", type=int, default=10, help="of PGD")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--image_size", type=int, default=32)
    parser.add_argument(
        "--channels_last", action="store_true", help="use this PyTorch memory format"
    )
    parser.add_argument(
        "--no-compile", dest="compile", action="store_false", help="without torch.compile"
    )
    parser.add_argument("--bfloat16", action="store_true", help="compute in bfloat16, both sides")
    parser.add_argument(
        "--devices", type=int, default=1, help="number of JAX devices; minibatches are split evenly"
    )
    parser.add_argument("--profile", action="store_true", help="also trace where the time goes")
    parser.add_argument("--output", help="JSON")
    return parser.parse_args(arguments)


class Ours:
    """The compiled programs of jaxadv on a device-resident data set."""

    def __init__(self, options, spec, module, variables, images, labels):
        def apply_fn(params, batch_stats, x, train):
            both = {"params": params, "batch_stats": batch_stats}
            if not train:
                return module.apply(both, x), batch_stats
            logits, changed = module.apply(both, x, train=True, mutable=["batch_stats"])
            return logits, changed["batch_stats"]

        place = spec and jax.sharding.NamedSharding(spec.mesh, jax.sharding.PartitionSpec())
        self.objective = objectives.adversarial_cross_entropy(apply_fn, num_steps=options.num_steps)
        program = lambda gamma: training.Program(
            apply_fn,
            self.objective,
            batch_size=options.batch_size,
            weight_perturbation=gamma,
            sharding=spec,
        )
        self.data = jax.device_put(
            training.DeviceData(jnp.asarray(images), jnp.asarray(labels)), place
        )
        self.key = jax.random.key(0)
        sgd = training.sgd(0.1)
        ensgd = optim.entropy_sgd(0.1, key=jax.random.key(1), n_in=N_IN)
        sgd_steps = {"at": program(0.0), "awp": program(GAMMA)}
        self.steps, self.states = {}, {}
        for name in options.methods:
            state = training.TrainState.create(
                variables["params"], variables["batch_stats"], ensgd if name == "ensgd" else sgd
            )
            # The compiled step donates the buffers of its state.
            self.states[name] = jax.device_put(jax.tree.map(jnp.array, state), place)
            if name == "ensgd":
                self.steps[name] = program(0.0).entropy_step(ensgd, N_IN)
            else:
                step = sgd_steps[name].sgd_steps(sgd)
                self.steps[name] = lambda *parts, step=step: step(*parts, 1)

    def call(self, name: str):
        """Runs one step of a method to completion."""
        state, metrics = self.steps[name](self.states[name], self.data, self.key)
        self.states[name] = jax.block_until_ready(state)
        return metrics


def gradients(options, ours, theirs, module, variables, images, labels) -> float:
    """Relative difference between both sides' parameter gradients on one minibatch."""
    # Identical inputs: at full width, one flipped ReLU changes the gradient by 1e-3.
    x = jnp.asarray(images[: options.batch_size].astype(np.float32) / 255)
    y = jnp.asarray(labels[: options.batch_size])
    found = jax.jit(
        jax.grad(lambda p: ours.objective.loss(p, variables["batch_stats"], x, x, y)[0])
    )
    both = {"params": found(variables["params"]), "batch_stats": variables["batch_stats"]}
    named = models.to_torch_state_dict(module, both)
    points = torch.from_numpy(np.moveaxis(np.array(x), -1, 1).copy()).to(theirs.trained[0].device)
    expected = theirs.gradient(points, torch.from_numpy(np.array(y)).long().to(points.device))
    names = [name for name, tensor in theirs.tensors.items() if tensor.requires_grad]
    pairs = [(np.array(named[n]), e.cpu().numpy()) for n, e in zip(names, expected, strict=True)]
    difference = sum(float(((a - b) ** 2).sum()) for a, b in pairs)
    return (difference / sum(float((b**2).sum()) for _, b in pairs)) ** 0.5


def rivals(options) -> tuple[dict, float]:
    """Calls by name, and the difference between the gradients."""
    spec = use_devices(options.devices)
    size = options.image_size
    dtype = jnp.bfloat16 if options.bfloat16 else jnp.float32
    module = models.preact_resnet18(10, width=options.width, dtype=dtype)
    variables = module.init(jax.random.key(0), jnp.zeros((1, size, size, 3)))
    rng = np.random.default_rng(0)
    number = N_IN * options.batch_size
    images = rng.integers(0, 256, (number, size, size, 3), np.uint8)
    labels = rng.integers(0, 10, number).astype(np.int32)
    ours = Ours(options, spec, module, variables, images, labels)

    device = "cuda" if torch.cuda.is_available() else "cpu"
    fmt = torch.channels_last if options.channels_last else torch.contiguous_format

    def trainer(compiled=False):
        tensors = _torch_resnet.weights(module, variables, trainable=True, device=device)
        if options.channels_last:
            for tensor in tensors.values():
                if tensor.dim() == 4:
                    tensor.data = tensor.data.to(memory_format=fmt)
        constants = _torch_resnet.constants(module, device)
        return Trainer(
            tensors,
            constants,
            num_steps=options.num_steps,
            autocast=options.bfloat16,
            compiled=compiled,
        )

    floats = torch.from_numpy(np.moveaxis(images, -1, 1).astype(np.float32) / 255)
    floats = floats.to(device).contiguous(memory_format=fmt).split(options.batch_size)
    targets = torch.from_numpy(labels).long().to(device).split(options.batch_size)
    minibatches = list(zip(floats, targets, strict=True))
    apart = gradients(options, ours, trainer(), module, variables, images, labels)

    def torch_call(name, theirs):
        steps = {
            "at": lambda: theirs.sgd_step(*minibatches[0]),
            "awp": lambda: theirs.awp_step(*minibatches[0], gamma=GAMMA),
            "ensgd": lambda: theirs.entropy_step(minibatches),
        }

        def call():
            steps[name]()
            if device == "cuda":
                torch.cuda.synchronize()

        return call

    calls = {}
    for name in options.methods:
        calls[f"jaxadv, {name}"] = lambda name=name: ours.call(name)
        calls[f"pytorch, {name}"] = torch_call(name, trainer())
        if options.compile:
            calls[f"torch.compile, {name}"] = torch_call(name, trainer(compiled=True))
    return calls, apart


def main(arguments=None) -> dict:
    """Runs both and returns the report it writes."""
    options = parse(arguments)
    options.methods = options.methods.split(",")
    if unknown := set(options.methods) - set(METHODS):
        raise SystemExit(
            f"--methods: {', '.join(sorted(unknown))} is not one of {', '.join(METHODS)}"
        )
    calls, apart = rivals(options)
    print(f"parameter gradients of both: relative difference {apart:.1e}", flush=True)
    report = {
        **provenance(options),
        "torch": torch.__version__,
        "torch_threads": torch.get_num_threads(),
        "gradient_difference": apart,
        "seconds": {},
        "ratio": {},
    }
    for name in options.methods:
        ours, *peers = (label for label in calls if label.endswith(f", {name}"))
        together = {label: calls[label] for label in (ours, *peers)}
        times = alternate(together, options.repeats, untimed=1)
        report["seconds"] |= summary(times)
        print(f"{ours:22} {report['seconds'][ours]['median']:8.3f} s", flush=True)
        for label in peers:
            found = report["ratio"][label] = ratio(times, ours, label)
            print(f"{label:22} {report['seconds'][label]['median']:8.3f} s, ratio "
                  f"{found['median']:5.2f} ({found['least']:.2f} to {found['greatest']:.2f})",
                  flush=True)  # fmt: skip
        if options.profile:
            found = report.setdefault("profile", {})
            found |= _trace.of_all({label: calls[label] for label in (ours, *peers)})
    save(report, options.output)
    return report


if __name__ == "__main__":
    main()
