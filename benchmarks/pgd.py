r"""PGD against Foolbox (on JAX) and torchattacks (PyTorch): same weights, images and budget.

    python -m benchmarks.pgd --width=16 --batch_size=128
    python -m benchmarks.pgd --checkpoint=FILE.npz --batch_size=256

Linf, random start, ``--num_steps`` steps, the last iterate; evaluation mode. The first command uses
random weights, random images and the network's own predictions as labels, the second a published
network and its data. All alternate in one process. Foolbox gets the compiled model. Prints the
times, and the share of images misclassified in the end.
"""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.cli.options import Parser
from jaxadv.attacks import pgd

from ._checkpoints import jax_model, load_checkpoint, load_images, resnets, torch_model
from ._report import provenance, save, use_devices
from ._timing import alternate, ratio, summary


def parse(arguments=None):
    """The command line."""
    parser = Parser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--checkpoint")
    parser.add_argument("--data", help="data set, npz or idx file; default: the checkpoint's")
    parser.add_argument("--width", type=int, default=16, help="of PreActResNet-18")
    parser.add_argument(
        "--plain", action="store_true", help="a ResNet with the convolutions of flax.linen.Conv"
    )
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--num_steps", type=int, default=20)
    parser.add_argument("--eps", type=float, help="default: the checkpoint's, or 8/255")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--devices", type=int, default=1, help="number of JAX devices; images are split evenly"
    )
    parser.add_argument("--output", help="JSON")
    return parser.parse_args(arguments)


def task(options):
    """Both models, images and labels."""
    if options.checkpoint:
        checkpoint = load_checkpoint(options.checkpoint)
        x, y = load_images(options.data or checkpoint.dataset, options.batch_size)
        options.eps = checkpoint.eps if options.eps is None else options.eps
        return jax_model(checkpoint), torch_model(checkpoint), x, y
    model, torch_fn = resnets(options.width, plain=options.plain)
    shape = (options.batch_size, 32, 32, 3)
    x = np.random.default_rng(0).uniform(size=shape).astype(np.float32)
    options.eps = 8 / 255 if options.eps is None else options.eps
    return model, torch_fn, x, np.asarray(model(jnp.asarray(x)).argmax(1), np.int32)


def rivals(options, spec, model, torch_fn, x, y) -> dict:
    """Calls by name; each returns adversarial images as (B, H, W, C)."""
    import foolbox  # pyright: ignore[reportMissingImports]
    import torch  # pyright: ignore[reportMissingImports]
    import torchattacks  # pyright: ignore[reportMissingImports]

    images, labels, step = jnp.asarray(x), jnp.asarray(y), options.eps / 4
    split = jax.device_put((images, labels), spec)
    compiled = jax.jit(
        lambda key, images, labels: pgd(
            key,
            model,
            images,
            labels,
            norm="linf",
            eps=options.eps,
            step_size=step,
            num_steps=options.num_steps,
        )
    )
    wrapped = foolbox.models.JAXModel(jax.jit(model), bounds=(0, 1))
    foolbox_attack = foolbox.attacks.LinfPGD(steps=options.num_steps, abs_stepsize=step)
    device = "cuda" if torch.cuda.is_available() else "cpu"

    class Module(torch.nn.Module):
        def forward(self, points):
            return torch_fn(points)

    torch_attack = torchattacks.PGD(
        Module().eval(), eps=options.eps, alpha=step, steps=options.num_steps, random_start=True
    )
    torch_attack.device = device
    points = torch.from_numpy(np.moveaxis(x, -1, 1).copy()).to(device)
    targets = torch.from_numpy(y.copy()).long().to(device)
    return {
        "jaxadv": lambda: jax.block_until_ready(compiled(jax.random.key(0), *split)),
        "foolbox": lambda: jax.block_until_ready(
            foolbox_attack.run(wrapped, images, labels, epsilon=options.eps)
        ),
        "torchattacks": lambda: torch_attack(points, targets).cpu().numpy().transpose(0, 2, 3, 1),
    }


def main(arguments=None) -> dict:
    """Runs all and returns the report it writes."""
    options = parse(arguments)
    spec = use_devices(options.devices)
    model, torch_fn, x, y = task(options)
    calls = rivals(options, spec, model, torch_fn, x, y)
    wrong = {}
    for name, call in calls.items():
        found = np.asarray(call())
        assert np.abs(found - x).max() <= options.eps + 1e-6
        wrong[name] = float((np.asarray(model(jnp.asarray(found)).argmax(1)) != y).mean())
    times = alternate(calls, options.repeats)
    peers = [name for name in calls if name != "jaxadv"]
    report = {
        **provenance(options),
        "seconds": summary(times),
        "ratio": {name: ratio(times, "jaxadv", name) for name in peers},
        "misclassified": wrong,
    }
    for name in calls:
        against = "" if name == "jaxadv" else f"  ratio {report['ratio'][name]['median']:5.2f}"
        print(f"{name:13} {report['seconds'][name]['median']:8.3f} s  misclassified "
              f"{wrong[name]:6.1%}{against}")  # fmt: skip
    save(report, options.output)
    return report


if __name__ == "__main__":
    main()
