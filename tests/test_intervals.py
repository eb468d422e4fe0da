"""Wilson's interval and how far a count is from a published accuracy."""

import math

import numpy as np
import pytest
import scipy.stats

from jaxadv import intervals


@pytest.mark.parametrize(("correct", "images"), [(0, 10), (7, 10), (669, 1000), (6731, 10_000)])
@pytest.mark.parametrize("confidence", [0.5, 0.95])
def test_wilson_solves_the_score_equation(correct, images, confidence):
    """The ends are the accuracies p at which the count is z deviations from its mean."""
    z = scipy.stats.norm.ppf(0.5 + confidence / 2)
    for end in intervals.wilson(correct, images, confidence=confidence):
        if 0 < end < 1:
            score = abs(correct - images * end) / math.sqrt(images * end * (1 - end))
            assert score == pytest.approx(z)
        else:
            assert end == correct / images


def test_wilson_contains_the_accuracy_as_often_as_it_says():
    rng = np.random.default_rng(0)
    counts = rng.binomial(200, 0.9, size=2000)
    ends = {int(k): intervals.wilson(int(k), 200) for k in np.unique(counts)}
    inside = np.mean([ends[int(k)][0] <= 0.9 <= ends[int(k)][1] for k in counts])
    assert 0.93 < inside < 0.97


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((5, 0), "images=0 must be an integer >= 1"),
        ((-1, 3), "correct=-1 must be"),
        ((4, 3), "correct=4 exceeds images=3"),
    ],
)
def test_counts_that_make_no_sense(arguments, message):
    with pytest.raises(ValueError, match=message):
        intervals.wilson(*arguments)
    with pytest.raises(ValueError, match="confidence=95 must be within 0 and 1"):
        intervals.wilson(1, 2, confidence=95)


def test_departure_is_the_share_of_draws_that_are_as_far():
    rng = np.random.default_rng(0)
    draws = rng.hypergeometric(60, 40, 20, size=20_000)  # 60 of 100 correct, 20 drawn
    for count in (8, 10, 12, 15):
        tail = min(np.mean(draws <= count), np.mean(draws >= count))
        found = intervals.departure(count, 20, 0.6, population=100)
        assert found == pytest.approx(min(1, 2 * tail), abs=0.02)
    # All of the population: only the published count is possible.
    assert intervals.departure(60, 100, 0.6, population=100) == 1
    assert intervals.departure(59, 100, 0.6, population=100) == 0
    with pytest.raises(ValueError, match="images=30 exceeds population=20"):
        intervals.departure(3, 30, 0.5, population=20)
