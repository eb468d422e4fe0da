r"""BatchNorm statistics over several devices: accuracy in float32, and collectives per pass.

    python -m benchmarks.batch_norm --output=benchmarks/results/batch_norm.json

Inputs have standard deviation 1 and a mean of 0 to 1000, per channel. Forms:

* two passes: the mean, then the mean square around it, as `jaxadv.models.BatchNorm` on
  accelerators;
* shifted by c: the means of x - c and (x - c)^2 in one all-reduce,
  :math:`\sigma^2 = E[(x - c)^2] - E[x - c]^2`, for the running mean c after a number of
  minibatches (at 0 it is 0, its initial value);
* combined: each device's moments around its own mean in one all-gather, then, in essence,
  :math:`\sigma^2 = E_d[\sigma_d^2] + \mathrm{Var}_d[\mu_d]`, as on several CPU devices.

Errors are against float64, the largest over channels, for several draws of the input: of the
variance relative to it, of the mean and of the normalized input in standard deviations. Collectives
are those of the compiled forward pass and of forward pass and gradient in the input.
"""

import functools
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from experiments.cli.options import Parser

from ._report import provenance, save, use_devices
from ._timing import summary

MINIBATCHES = (0, 1, 10, 100)  # before the one that is measured
AXIS = "batch"


def parse(arguments=None):
    """The command line."""
    parser = Parser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--devices", type=int, default=2, help="number of JAX devices")
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--image_size", type=int, default=32)
    parser.add_argument("--channels", type=int, default=16)
    parser.add_argument("--means", default="0,1,10,100,1000", help="in standard deviations")
    parser.add_argument("--draws", type=int, default=8, help="of the input")
    parser.add_argument("--output", type=pathlib.Path, help="JSON")
    return parser.parse_args(arguments)


def two_passes(x, shift):
    """Two all-reduces, the second of which waits for the first."""
    del shift
    mean = jax.lax.pmean(jnp.mean(x, (0, 1, 2)), AXIS)
    return mean, jax.lax.pmean(jnp.mean(jnp.square(x - mean.reshape(1, 1, 1, -1)), (0, 1, 2)), AXIS)


def shifted(x, shift):
    """One all-reduce; the difference cancels where the shift is far from the mean."""
    d = x - shift.reshape(1, 1, 1, -1)
    moments = jnp.stack([jnp.mean(d, (0, 1, 2)), jnp.mean(jnp.square(d), (0, 1, 2))])
    first, second = jax.lax.pmean(moments, AXIS)
    return shift + first, second - jnp.square(first)


def combined(x, shift):
    """One all-gather of the devices' moments around their own means; nothing large cancels."""
    del shift
    mean = jnp.mean(x, (0, 1, 2))
    d = x - mean.reshape(1, 1, 1, -1)
    # The rounding error of the mean is kept: it matters where devices differ by more than it.
    moments = jnp.stack([mean, jnp.mean(d, (0, 1, 2)), jnp.mean(jnp.square(d), (0, 1, 2))])
    means, first, second = jnp.moveaxis(jax.lax.all_gather(moments, AXIS), 1, 0)
    center = jnp.mean(means, 0)
    e = means - center[None]
    offset = jnp.mean(first + e, 0)
    second = jnp.mean(second + 2 * first * e + jnp.square(e), 0)
    return center + offset, second - jnp.square(offset)


FORMS = {"two passes": two_passes, "shifted": shifted, "combined": combined}


def normalizer(form, mesh):
    """The compiled function of images and shift: normalized images, mean and variance."""
    rows, everywhere = PartitionSpec(AXIS), PartitionSpec()

    def normalized(x, shift):
        mean, var = form(x, shift)
        shape = (1, 1, 1, -1)
        return (x - mean.reshape(shape)) * jax.lax.rsqrt(var + 1e-5).reshape(shape), mean, var

    return jax.shard_map(
        normalized,
        mesh=mesh,
        in_specs=(rows, everywhere),
        out_specs=(rows, everywhere, everywhere),
        check_vma=False,
    )


def errors(apply, x, shift):
    """Errors of one compiled form on one minibatch."""
    y, mean, var = map(np.float64, apply(x, jnp.asarray(shift, jnp.float32)))
    x = np.float64(x)
    true_mean, true_var = x.mean((0, 1, 2)), x.var((0, 1, 2))
    exact = (x - true_mean) / np.sqrt(true_var + 1e-5)
    return {
        "variance": float(np.max(np.abs(var / true_var - 1))),
        "mean": float(np.max(np.abs(mean - true_mean) / np.sqrt(true_var))),
        "normalized": float(np.max(np.abs(y - exact))),
    }


def collectives(apply, x):
    """Collectives of a forward pass, and of a forward and a backward pass."""
    shift = jnp.zeros(x.shape[-1])
    loss = lambda x: jnp.sum(apply(x, shift)[0] ** 3)
    passes = {"forward": lambda x: apply(x, shift), "forward and backward": jax.grad(loss)}
    texts = {name: jax.jit(f).lower(x).compile().as_text() or "" for name, f in passes.items()}
    pattern = r" (?:all-reduce|all-gather|reduce-scatter)(?:-start)?\("
    return {name: len(re.findall(pattern, text)) for name, text in texts.items()}


def main(arguments=None):
    """Measures, prints and writes."""
    options = parse(arguments)
    sharding = use_devices(options.devices)
    if sharding is None:
        raise SystemExit("--devices=1: nothing is synchronized; use at least 2")
    size = (options.batch_size, options.image_size, options.image_size, options.channels)
    draw = lambda number: np.random.default_rng(number).normal(size=size)
    found = {"accuracy": [], "collectives": {}}
    applies = {name: normalizer(form, sharding.mesh) for name, form in FORMS.items()}
    compiled = {name: jax.jit(apply) for name, apply in applies.items()}
    print(f"{'mean':>6}  {'form':36}{'variance':>20}{'mean':>20}{'output':>20}")
    for text in options.means.split(","):
        offset = float(text)
        inputs = [
            jax.device_put(np.float32(offset + draw(number)), sharding)
            for number in range(options.draws)
        ]
        measure = functools.partial(_row, found["accuracy"], offset, inputs)
        zeros = np.zeros(options.channels)
        measure("two passes", compiled["two passes"], zeros)
        for number in MINIBATCHES:
            running = np.full(options.channels, (1 - 0.9**number) * offset)
            measure(f"shifted, after {number} minibatches", compiled["shifted"], running)
        measure("combined", compiled["combined"], zeros)
    x = jax.device_put(np.float32(draw(0)), sharding)
    for name, apply in applies.items():
        found["collectives"][name] = collectives(apply, x)
        print(f"{name:12}{found['collectives'][name]}")
    save(provenance(options) | found, options.output)
    return found


def _row(rows, offset, inputs, form, apply, shift):
    each = [errors(apply, x, shift) for x in inputs]
    error = summary({name: [one[name] for one in each] for name in each[0]})
    rows.append({"input_mean": offset, "form": form, "errors": error})
    numbers = "".join(f"{one['least']:10.1e} to {one['greatest']:.1e}" for one in error.values())
    print(f"{offset:6g}  {form:36}{numbers}", flush=True)


if __name__ == "__main__":
    main()
