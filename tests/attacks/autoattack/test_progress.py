"""What is said during an AutoAttack, and which counts are a sign of something."""

import io
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv.attacks import autoattack
from jaxadv.attacks._autoattack import progress as progress_module
from jaxadv.attacks._autoattack.checks import check_black_box
from jaxadv.attacks._autoattack.plan import make_plan
from jaxadv.attacks._autoattack.progress import Reporter

KEY = jax.random.key(0)
IMAGES = jax.random.uniform(jax.random.key(1), (96, 4, 4, 1))
WEIGHTS = jax.random.normal(jax.random.key(2), (16, 5))
MODEL = lambda x: x.reshape(len(x), -1) @ WEIGHTS
LABELS = MODEL(IMAGES).argmax(1).astype(jnp.int32)


def run(progress, **options):
    settings = dict(eps=0.02, num_steps=10, num_queries=100, batch_size=16) | options
    return autoattack(KEY, MODEL, IMAGES, LABELS, progress=progress, **settings)


class Log(io.StringIO):
    """A standard error that is a file or a terminal."""

    def __init__(self, terminal):
        super().__init__()
        self._terminal = terminal

    def isatty(self):
        return self._terminal


@pytest.fixture(scope="module")
def seen():
    reports = []
    run(reports.append)
    return reports


def test_the_clean_pass_reports_the_accuracy_of_the_images_seen(seen):
    clean = [report for report in seen if report.attack == "clean" and report.images_left]
    assert clean and all(report.accuracy == 1.0 for report in clean)


def test_the_estimate_covers_the_whole_evaluation_and_never_doubles_or_halves(seen):
    totals = [report.elapsed + report.remaining for report in seen]
    known = [total for total in totals if not math.isnan(total)]
    assert len(known) > 5 and math.isnan(totals[0])
    left = [report.remaining for report in seen if not math.isnan(report.remaining)]
    for before, after in itertools.pairwise(known[:-1]):
        assert after < 2 * before and before < 2 * max(after, 1e-9) or left[-1] == 0
    assert left[0] > 0


def test_a_pace_that_jumps_moves_the_total_in_bounded_steps(monkeypatch):
    now = itertools.accumulate([1.0] * 60)
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: next(now))
    reports = []
    reporter = Reporter(reports.append)
    left = 100_000
    for seconds in [30.0] + [1.0] * 40:
        left -= 1000
        reporter.update("apgd-ce", "1/1", left, 1.0, spent=(1000, seconds), left=left)
    totals = [report.elapsed + report.remaining for report in reports]
    for before, after in itertools.pairwise(totals):
        assert before / 2 < after < 2 * before
    assert reports[-1].remaining == pytest.approx(left / 1000, rel=0.2)


def test_a_log_file_gets_few_whole_lines(monkeypatch):
    log = Log(terminal=False)
    monkeypatch.setattr("sys.stderr", log)
    run(True)
    lines = log.getvalue().splitlines()
    assert "\r" not in log.getvalue()
    assert len(lines) <= 6 and all(line.rstrip().endswith("left") for line in lines)


def test_a_terminal_gets_one_line_redrawn(monkeypatch):
    log = Log(terminal=True)
    monkeypatch.setattr("sys.stderr", log)
    run(True)
    assert log.getvalue().count("\n") == 1 and log.getvalue().count("\r") > 5


@pytest.mark.parametrize(
    "broken, number, usual",
    [(0, 360, True), (1, 360, True), (2, 1000, True), (20, 10_000, True), (2, 10, False),
     (5, 360, False), (8, 1000, False), (40, 10_000, False)],
)  # fmt: skip
def test_square_is_a_sign_of_masking_only_beyond_sampling_error(broken, number, usual):
    broken_by = np.array(["square"] * broken + [""] * (number - broken))
    plan, _ = make_plan("custom", "linf", 10, attacks=["apgd-ce", "square"])
    (check,) = check_black_box(plan, broken_by)
    alone, _ = make_plan("custom", "linf", 10, attacks=["square", "apgd-ce"])
    assert check_black_box(alone, broken_by) == []
    assert check.passed is usual
    assert f"{broken} of {number} images" in check.message


def test_all_clean_logits_are_checked():
    place = 77
    model = lambda x: MODEL(x) + jnp.where(x[:, 0, 0, 0] == 0.125, jnp.nan, 0)[:, None]
    images = IMAGES.at[:, 0, 0, 0].set(0.25).at[place, 0, 0, 0].set(0.125)
    labels = MODEL(images).argmax(1).astype(jnp.int32)
    labels = labels.at[place].set(0)  # what argmax makes of NaN
    found = autoattack(
        KEY, model, images, labels, eps=1e-4, version="custom", attacks="apgd-ce", num_steps=3,
        progress=False,
    )  # fmt: skip
    assert np.flatnonzero(~found.robust).tolist() == [place]
    assert found.broken_by[place] == "clean"
    (check,) = [check for check in found.checks if check.name == "finite"]
    assert not check.passed and "1 of 96" in check.message
