"""The uncertainty of an accuracy that was counted on some images.

>>> low, high = wilson(669, 1000)
>>> f"{low:.3f} to {high:.3f}"
'0.639 to 0.697'
"""

import math

import scipy

from .checks import check_count


def wilson(correct: int, images: int, *, confidence: float = 0.95) -> tuple[float, float]:
    r"""Wilson's score interval of an accuracy.

    .. math:: \frac{k + z^2/2 \pm z \sqrt{k (n - k)/n + z^2/4}}{n + z^2}

    for k correct of n images and the normal quantile z. It holds for images drawn at random from
    many: it says how far the accuracy of other test images may be, and nothing about training.

    Args:
      correct: k, within 0 to ``images``.
      images: n >= 1.
      confidence: probability with which the interval contains the accuracy of all such images.

    Returns:
      Its two ends, fractions within [0, 1].

    Raises:
      ValueError: if a count or the confidence is out of range.

    References:
      Wilson, 1927, "Probable Inference, the Law of Succession, and Statistical Inference".

    Example:
      >>> low, high = wilson(0, 100)
      >>> low, round(high, 3)
      (0.0, 0.037)
    """
    check_count("images", images, 1)
    check_count("correct", correct, 0)
    if correct > images:
        raise ValueError(f"correct={correct} exceeds images={images}; count both on the same ones")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence} must be within 0 and 1, such as 0.95")
    found = scipy.stats.binomtest(int(correct), int(images)).proportion_ci(confidence, "wilson")
    return float(found.low), float(found.high)


def departure(correct: int, images: int, published: float, *, population: int) -> float:
    """How unlikely a count is if ``images`` were drawn from those behind a published accuracy.

    The count is hypergeometric: round(published * population) of ``population`` images are
    correct.

    Args:
      correct: count on the images.
      images: their number.
      published: accuracy of all, a fraction.
      population: number of images behind it, at least ``images``.

    Returns:
      The probability of a count at least as far on the same side, doubled; at most 1.

    Raises:
      ValueError: if there are more images than in the population.

    Example:
      >>> departure(924, 1000, 0.9244, population=10_000) > 0.9
      True
      >>> departure(880, 1000, 0.9244, population=10_000) < 1e-6
      True
    """
    check_count("images", images, 1)
    if images > population:
        raise ValueError(f"images={images} exceeds population={population}; pass at most as many")
    counts = scipy.stats.hypergeom(population, round(published * population), images)
    tail = min(float(counts.cdf(correct)), float(counts.sf(correct - 1)))
    return min(1.0, 2 * tail) if math.isfinite(tail) else 1.0
