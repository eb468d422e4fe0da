"""Paired comparisons of training methods: verdicts on the same test images, over seeds."""

from collections.abc import Iterable, Mapping

import numpy as np

from experiments.run.accuracy import mcnemar

RESAMPLES = 10_000


def pack(flags: np.ndarray) -> dict:
    """Booleans as JSON: their number, and their bits in hexadecimal, first image first.

    Example:
        >>> pack(np.array([True, False, False, True]))
        {'images': 4, 'bits': '90'}
    """
    return {"images": len(flags), "bits": np.packbits(np.asarray(flags, bool)).tobytes().hex()}


def unpack(packed: Mapping) -> np.ndarray:
    """What `pack` was given.

    Example:
        >>> unpack({"images": 4, "bits": "90"}).astype(int)
        array([1, 0, 0, 1])
    """
    bits = np.frombuffer(bytes.fromhex(packed["bits"]), np.uint8)
    return np.unpackbits(bits, count=packed["images"]).astype(bool)


def differences(
    correct: Mapping[tuple[str, int], Mapping[str, np.ndarray]],
    pairs: Iterable[tuple[str, str]],
    resamples: int = RESAMPLES,
) -> list[dict]:
    """Differences of accuracy between two methods, paired by seed and image.

    Args:
        correct: by (method, seed) and attack, whether each test image is classified correctly.
        pairs: the methods to compare; the second is subtracted.
        resamples: of the bootstrap.

    Returns:
        For each pair and attack with a common seed, in percent: "difference", its 95 % "interval"
        from resampling seeds and images (images alone if there is one seed, which says nothing of
        training), and by seed the difference and the p-value of McNemar's exact test.
    """
    found = []
    for method, other in pairs:
        seeds = sorted(s for m, s in correct if m == method and (other, s) in correct)
        for attack in correct[method, seeds[0]] if seeds else ():
            a, b = (np.stack([correct[m, s][attack] for s in seeds]) for m in (method, other))
            by_seed = [
                {"seed": s, "difference": 100 * float(x.mean() - y.mean()), "p": mcnemar(x, y)}
                for s, x, y in zip(seeds, a, b, strict=True)
            ]
            change = a.astype(np.int8) - b
            found.append(
                {"method": method, "minus": other, "attack": attack, "images": a.shape[1]}
                | {"difference": 100 * float(change.mean())}
                | {"interval": [100 * end for end in bootstrap(change, resamples)]}
                | {"seeds": by_seed}
            )
    return found


def bootstrap(change: np.ndarray, resamples: int = RESAMPLES) -> tuple[float, float]:
    """The 95 % percentile interval of the mean over seeds and images.

    Args:
        change: of shape (seeds, images). Both axes are resampled with replacement, the images
            alike for all seeds, since their difficulty is common to them.
        resamples: number of resamples.

    Example:
        >>> bootstrap(np.ones((3, 50)))
        (1.0, 1.0)
    """
    rng = np.random.default_rng(0)
    seeds, images = change.shape
    means = np.empty(resamples)
    for number in range(resamples):
        weights = np.bincount(rng.integers(images, size=images), minlength=images)
        means[number] = (change[rng.integers(seeds, size=seeds)] @ weights).mean() / images
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def to_markdown(pairs: Iterable[Mapping], names: Mapping[str, str]) -> str:
    """The differences as a Markdown table, in percentage points.

    Args:
        pairs: from `differences`.
        names: titles of the methods.
    """
    lines = ["| difference, points | attack | images | seeds | mean [95 %] | p by seed |"]
    lines += ["|---|---|---|---|---|---|"]
    for pair in pairs:
        low, high = pair["interval"]
        tests = ", ".join(f"{seed['p']:.2g}" for seed in pair["seeds"])
        lines.append(
            f"| {names[pair['method']]} - {names[pair['minus']]} | {pair['attack']} "
            f"| {pair['images']:,} | {len(pair['seeds'])} "
            f"| {pair['difference']:+.2f} [{low:+.2f}, {high:+.2f}] | {tests} |"
        )
    return "\n".join(lines)
