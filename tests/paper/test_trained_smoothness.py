"""Smoothness of trained networks: the committed data, their verdicts and the measurements."""

import copy
import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("matplotlib")

from jaxadv import theory
from theory.trained_smoothness import __main__ as command
from theory.trained_smoothness import run, summary
from theory.trained_smoothness.attacks import Attacks, Maxima
from theory.trained_smoothness.design import NORMS, OPTIMIZERS, Setting
from theory.trained_smoothness.figure import draw
from theory.trained_smoothness.measure import Probe
from theory.trained_smoothness.networks import network

ROOT = pathlib.Path(__file__).parents[2]
COMMITTED = ROOT / "benchmarks/results/trained-smoothness"


@pytest.fixture(scope="module")
def cells():
    return summary.load(COMMITTED)


def check(cell, *, searched_well=True):
    for row in cell["rows"]:
        assert row["largest_residual"] < 1e-9
        assert sum(row["kinds"].values()) == cell["images"]
        assert len(row["value_gaps"]) + row["single_maxima"] == cell["images"]
        for norm, bound in zip(row["norms"], row["sharp_bounds"], strict=True):
            assert 0 <= norm <= bound * (1 + 1e-4)
        # The motion of the attacks only adds curvature (formulas A.9, CURV).
        top = row["eigenvalues"]
        assert top["true"] >= top["frozen"] * (1 - 0.02) - 1e-6
        for step in row["steps"].values():
            slack = 1e-3 * (1 + step["total"])
            assert step["total"] <= step["attack"] + step["parameter"] + slack
            assert step["attack"] <= step["attack_of_switches"] + step["attack_of_motion"] + slack
            fates = [step[name] for name in ("continuous", "ended", "crossed", "undecided")]
            assert sum(fates) == cell["images"]
            assert step["far_but_continuous"] <= min(step["far"], step["continuous"])
            # An attack that another maximum overtook is worth less than that maximum.
            # From a few starts it may be missed, and the audit then finds it out.
            if searched_well:
                assert all(lead > -1e-9 for lead in step["lead_of_crossed"])
                assert step["violations"]["union"] == 0


def test_the_committed_data_hold_together(cells):
    seeds = {}
    for cell in cells:
        check(cell)
        # Which following left too early before it had short steps of its own.
        assert not any("interior" in row["kinds"] for row in cell["rows"])
        methods = [row["method"] for row in cell["rows"]]
        assert sorted(methods) == sorted(2 * list(OPTIMIZERS))
        assert cell["starts"] >= 16
        assert "+" not in cell["environment"]["commit"]
        seeds.setdefault((cell["setting"], cell["norm"]), set()).add(cell["seed"])
    assert {norm for setting, norm in seeds if setting == "base"} == set(NORMS)
    assert all(found == set(range(8)) for found in seeds.values())


def test_the_audit_can_fail_and_passes(cells):
    found = summary.checks(summary.Data(cells))["violations"]
    assert found["one_start"] > 5 * found["own_starts"]


def test_the_page_has_the_tables_of_the_data(cells):
    page = (ROOT / "docs" / "theory.md").read_text(encoding="utf-8")
    assert summary.fill(page, summary.Data(cells)) == page


def test_the_figure_shows_every_norm(cells):
    figure = draw(summary.Data(cells))
    assert len(figure.axes) == 3 * len({cell["norm"] for cell in cells})
    assert all(axes.has_data() for axes in figure.axes)


def scaled(cells, factor, **chosen):
    """The cells with every change of the gradient times a factor, where they are as chosen."""
    cells = copy.deepcopy(cells)
    for cell in cells:
        for row in cell["rows"]:
            if all((cell | row)[name] == value for name, value in chosen.items()):
                for step in row["steps"].values():
                    step["total"] *= factor
                    step["attack"] *= factor
    return cells


def test_data_that_speak_against_a_hypothesis_change_its_verdict(cells):
    def verdict(cells, name):
        found = summary.verdicts(summary.Data(cells))
        return next(v.verdict for v in found if v.name == name and "eigenvalue" not in v.statement)

    tiny, huge = 1e-6, 1e6
    for norm in NORMS:
        label = summary.NORM_NAMES[norm]
        chosen = {"norm": norm, "method": "at"}
        assert verdict(scaled(cells, tiny, **chosen), f"H1, {label}") == "contradicted"
        assert verdict(scaled(cells, tiny, **chosen), f"H5, {label}") == "contradicted"
        assert verdict(scaled(cells, huge, **chosen), f"H1, {label}") in ("supported", "base only")
        assert verdict(scaled(cells, huge, **chosen), f"H5, {label}") in ("supported", "base only")
    assert verdict(scaled(cells, tiny, norm="linf"), "H2") == "contradicted"


def test_an_interval_covers_the_median_of_seeds():
    found = summary.median([3.0, 1.0, 2.0, np.nan])
    assert (found.value, found.low, found.high, found.seeds) == (2.0, 1.0, 3.0, 3)
    assert summary.median([np.nan]).seeds == 0


def test_misuse(tmp_path, capsys):
    for options in ("--epochs=0", "--settings=wide", f"--output={tmp_path} --redraw"):
        with pytest.raises(SystemExit):
            command.main(options.split())
    assert "run python -m theory.trained_smoothness first" in capsys.readouterr().err


def two_hills(params, x, label):
    """A hill of height 1 at 0.25, and one of height theta_0 at 0.75 + 0.1 theta_1."""
    height, shift = params
    hill = lambda place: jnp.exp(-jnp.sum((x - place) ** 2) / 0.01)
    return hill(0.25) + height * hill(0.75 + 0.1 * shift) + 0.0 * label


def fold(params, x, label):
    """At theta = 0 two maxima, where x - 0.5 is -0.22 and 0.22; the first ends at 0.017."""
    u = x - 0.5
    return jnp.sum(-(u**4) + 0.1 * u**2 + params[0] * u) + 0.0 * label


@pytest.fixture(scope="module")
def hills():
    return Attacks(two_hills, "linf", 0.5)


X, LABELS = np.full((1, 2), 0.5), np.zeros(1, int)


@pytest.mark.slow
def test_the_best_of_many_starts_and_its_gap(hills):
    with jax.enable_x64(True):
        params = np.array([1.5, 0.0])
        found = hills.climb(params, X, LABELS, hills.starts(0, X, 64))
        best, residuals = hills.best(params, X, LABELS, found)
    np.testing.assert_allclose(best.points[0], [[0.75, 0.75], [0.25, 0.25]], atol=1e-8)
    np.testing.assert_allclose(best.values[0], [1.5, 1.0], atol=1e-8)
    assert residuals[0] < 1e-9


@pytest.mark.slow
@pytest.mark.parametrize(
    ("step", "end"),
    [
        ((-1.0, 0.0), 0.75),  # the other is higher now, but this maximum is still there
        ((0.0, 1.0), 0.85),  # moved by a tenth of the diameter, continuously
    ],
)
def test_following_a_maximum_that_remains(hills, step, end):
    with jax.enable_x64(True):
        start = np.full((1, 2), 0.75)
        branch = hills.follow(np.array([1.5, 0.0]), np.array(step), X, LABELS, start)
    assert branch.finished[0] and branch.jumps[0] == 0
    np.testing.assert_allclose(branch.point[0], end, atol=1e-6)


@pytest.mark.slow
def test_following_a_maximum_to_its_end_and_not_further():
    attacks = Attacks(fold, "linf", 0.5)
    start = np.full((1, 2), 0.5 - np.sqrt(0.05))
    last = 0.2 * np.sqrt(0.1 / 6) * 2 / 3  # 4 u^3 - 0.2 u has its extrema at u^2 = 0.1 / 6
    for end, jumps in ((0.99 * last, 0), (0.05, 1)):
        with jax.enable_x64(True):
            branch = attacks.follow(np.zeros(1), np.array([end]), X, LABELS, start)
        assert branch.finished[0] and branch.jumps[0] == jumps
        if not jumps:
            roots = np.roots([-4, 0, 0.2, end])
            np.testing.assert_allclose(branch.point[0] - 0.5, np.sort(roots.real)[0], atol=1e-7)


def sprint(params, x, label):
    """One maximum, at 0.5 + 0.4 tanh(500 theta): nearly all of its motion is in 1 % of [-1, 1]."""
    place = 0.5 + 0.4 * jnp.tanh(500 * params[0])
    return -jnp.sum((x - place) ** 2) + 0.0 * label


@pytest.mark.slow
def test_fast_but_continuous_motion_is_no_jump():
    attacks = Attacks(sprint, "linf", 0.5)
    with jax.enable_x64(True):
        start = np.full((1, 2), 0.1)
        branch = attacks.follow(np.array([-1.0]), np.array([2.0]), X, LABELS, start)
    assert branch.finished[0] and branch.jumps[0] == 0
    np.testing.assert_allclose(branch.point[0], 0.9, atol=1e-7)
    assert branch.largest[0] <= 0.02


def valley(params, x, label):
    """Corners are the maxima; that at 1 ends when theta exceeds 0.5 + 0.01 label, far from others.

    The second coordinate's slope makes the end a slow one in relative terms.
    """
    u = x - 0.5
    return 0.5 * u[0] ** 2 + (0.01 * label - params[0]) * u[0] + 1000.0 * u[1]


@pytest.mark.slow
def test_a_corner_whose_multiplier_vanishes_is_the_end_of_its_branch():
    attacks, labels = Attacks(valley, "linf", 0.5), np.arange(20)
    images, start = np.full((20, 2), 0.5), np.ones((20, 2))
    with jax.enable_x64(True):
        branch = attacks.follow(np.zeros(1), np.full(1, 0.6), images, labels, start)
    assert branch.finished.all()
    ends = 0.5 + 0.01 * labels < 0.6 - 1e-9
    at_the_end = np.isclose(0.5 + 0.01 * labels, 0.6)
    assert (branch.jumps == ends)[~at_the_end].all()
    np.testing.assert_allclose(branch.point[branch.jumps == 0], 1.0)


def ridge(params, x, label):
    """An interior maximum at 0.3, nearly flat, beside a higher one at 0.7."""
    hill = lambda place, width: jnp.exp(-jnp.sum((x - place) ** 2) / width)
    return (0.01 + 0.001 * params[0]) * hill(0.3, 0.02) + 3.0 * hill(0.7, 0.005) + 0.0 * label


@pytest.mark.slow
def test_following_does_not_leap_from_an_interior_maximum():
    attacks = Attacks(ridge, "linf", 0.5)
    with jax.enable_x64(True):
        start = np.full((1, 2), 0.3)
        branch = attacks.follow(np.zeros(1), np.ones(1), X, LABELS, start)
    assert branch.finished[0] and branch.jumps[0] == 0
    np.testing.assert_allclose(branch.point[0], 0.3, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("norm", NORMS)
def test_the_search_finds_what_the_exact_one_finds(norm):
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(6, 6))
    loss = lambda params, x, label: jnp.sum(jnp.cos(3 * (params @ x))) + 0.0 * label
    attacks = Attacks(loss, norm, 0.4)
    x = rng.uniform(size=(3, 6))
    with jax.enable_x64(True):
        found = attacks.climb(matrix, x, np.zeros(3, int), attacks.starts(0, x, 32))
        best, _ = attacks.best(matrix, x, np.zeros(3, int), found)
    for i in range(3):
        exact = theory.optimal_attack(
            jax.random.key(0), lambda x, p: loss(p, x, 0), matrix, x[i], norm=norm, eps=0.4,
            bounds=(0.0, 1.0), num_restarts=32,
        )  # fmt: skip
        assert best.values[i, 0] >= float(exact.value) - 1e-6
        lengths = np.abs(found.points[i] - x[i])
        size = lengths.max(1) if norm == "linf" else np.linalg.norm(lengths, axis=1)
        assert size.max() <= 0.4 + 1e-9
        assert 0 <= found.points[i].min() and found.points[i].max() <= 1


def test_different_maxima_are_kept_once_and_sorted(hills):
    points = np.array([[[0.25, 0.25], [0.75, 0.75], [0.25, 0.25001]]])
    found = hills.distinct(Maxima(points, np.array([[1.0, 1.5, 1.0]])), 3)
    np.testing.assert_array_equal(found.values, [[1.5, 1.0, -np.inf]])
    np.testing.assert_array_equal(found.points[0, :2], [[0.75, 0.75], [0.25, 0.25]])


@pytest.mark.slow
def test_the_audit_of_an_image_is_that_of_the_library():
    setting = Setting("tiny", width=4)
    probe = Probe(setting, "l2", (2, 2, 1), 2)
    rng = np.random.default_rng(0)
    x, labels = rng.uniform(size=(1, 4)), np.zeros(1, int)
    with jax.enable_x64(True):
        flat = rng.normal(size=_size(setting))
        step = 0.1 * rng.normal(size=flat.shape)
        ends = x, np.clip(x + 0.1, 0, 1)
        quotients, bounds = probe._monotone(flat, step, labels, *ends)
        loss = lambda x, params: probe.loss(params, x, 0)
        modulus = theory.segment_weak_convexity(loss, flat, flat + step, [e[0] for e in ends])
        gradients = {0: probe._gradients(flat, ends[0], labels)[0],
                     1: probe._gradients(flat + step, ends[1], labels)[0]}  # fmt: skip
        audit = theory.monotonicity_audit(
            lambda p: gradients[int(not np.array_equal(p, flat))], [flat, flat + step],
            weak_convexity=modulus,
        )  # fmt: skip
    np.testing.assert_allclose(quotients[0], audit.worst, rtol=1e-9)
    np.testing.assert_allclose(bounds[0], audit.bound, rtol=1e-9)


def _size(setting):
    params = network(setting).init(jax.random.key(0), jnp.zeros((1, 2, 2, 1)))["params"]
    return sum(leaf.size for leaf in jax.tree.leaves(params))


@pytest.mark.slow
def test_command_continues_where_it_stopped(tmp_path, capsys, monkeypatch):
    # Compiling is nearly all of the time: the second command uses what the first one compiled.
    monkeypatch.setattr(run, "Probe", functools.cache(run.Probe))
    options = [f"--output={tmp_path / 'out'}", f"--cache={tmp_path / 'cache'}"]
    options += ["--epochs=2", "--seeds=2", "--starts=2", "--settings=base"]
    assert command.main(options) == 0
    files = sorted((tmp_path / "out").glob("*.json"))
    assert len(files) == 4
    for file in files:
        check(json.loads(file.read_text(encoding="utf-8")), searched_well=False)
    kept, removed = files[0].stat().st_mtime_ns, files[1]
    again = json.loads(removed.read_text(encoding="utf-8"))
    removed.unlink()
    assert command.main(options) == 0
    assert files[0].stat().st_mtime_ns == kept
    assert json.loads(removed.read_text(encoding="utf-8"))["rows"] == again["rows"]
    for suffix in (".png", ".pdf"):
        assert (tmp_path / "out" / f"trained_smoothness{suffix}").stat().st_size > 5000
    assert "H1" in capsys.readouterr().out
