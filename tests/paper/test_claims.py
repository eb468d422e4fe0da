"""The claims checker: verdicts come from numbers, and a wrong ingredient changes every one."""

import json
import re

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from theory.claims import __main__ as claims
from theory.claims import errata
from theory.claims.registry import (
    BROKEN,
    CLAIMS,
    CORRECTED,
    FALSE,
    HOLDS,
    IMPLIED,
    OURS,
    PRINTED,
    REFUTED,
    Claim,
    Trial,
    check,
    join,
    sabotage,
    within,
)

VERDICTS = {
    "Proposition 1, value": HOLDS,
    "Proposition 1, gradient, Linf": CORRECTED,
    "Lemma 2": HOLDS,
    "Lemma 2, corollary": CORRECTED,
    "Theorem 1": HOLDS,
    "The constant exceeds C_thth": CORRECTED,
    "Lemma 3, same signs": HOLDS,
    "Lemma 3, signs differ": CORRECTED,
    "Linf attack away from the axes": HOLDS,
    "Theorem 2": HOLDS,
    "Assumption 1": CORRECTED,
    "Descent below L(0)": HOLDS,
    "Norm from the loss": HOLDS,
    "Gradient and Hessian in closed form": HOLDS,
    "Sharper than Theorem 1": HOLDS,
    "Smoothness bounds the Hessian": HOLDS,
    "Sharpness at a smooth minimum": HOLDS,
    "Sharpness at a kink": CORRECTED,
    "Lemma 1": HOLDS,
    "Danskin": HOLDS,
    "(MON) exposes PGD": HOLDS,
    "Roughness for every p": HOLDS,
    "Kink at the origin": HOLDS,
    "Proof of Theorem 2": CORRECTED,
    "Continuity at theta_i = 0": CORRECTED,
    "Cross-smoothness": CORRECTED,
    "Multiplier of the L2 attack": CORRECTED,
    "Lemma 4": HOLDS,
    "Lemma 4, size of the neighborhood": CORRECTED,
    "Lemma 5": HOLDS,
    "Lemma 5, sharp": HOLDS,
    "Hessian of the adversarial loss": HOLDS,
    "(CURV)": HOLDS,
    "Linf attacks with a fixed active set": HOLDS,
    "det K > 0 is sufficient": CORRECTED,
    "det K > 0 in odd dimension": CORRECTED,
    "Border of K": CORRECTED,
    "sigma_min(K) measures curvature": CORRECTED,
    "sigma_min(K) is a property of the attack": CORRECTED,
    "Flatness in the input space": CORRECTED,
    "Lipschitz attack on the sphere": HOLDS,
    "Projection": CORRECTED,
    "Lipschitz attack under any convex constraint": HOLDS,
    "Linf attacks across active sets": HOLDS,
    "Regularized attack": HOLDS,
    "Stability of a vertex": HOLDS,
    "A coordinate that switches": HOLDS,
    "Smooth networks": CORRECTED,
    "Lemma 4 for ReLU networks": HOLDS,
    "Exact attack of the swish neuron": HOLDS,
    "The smooth corner of the swish neuron": CORRECTED,
    "The linear model in that corner": CORRECTED,
    "Lemma 4 for the swish neuron": CORRECTED,
    "(MON) for exact attacks": HOLDS,
    "Smoothness of -F, L2 and Linf": HOLDS,
    "Optima of -F": FALSE,
    "Theorem 3": HOLDS,
    "Theorem 3, spectral": HOLDS,
    "Smoothed convex loss": HOLDS,
    "Smoothed weakly convex loss": HOLDS,
    "Smoothed Lipschitz loss": HOLDS,
    "Theorem 3 on all of R^m": HOLDS,
    "Pointwise finite covariance": CORRECTED,
    "Integration by parts": HOLDS,
    "Smoothed kink": HOLDS,
    "Curvature between wells": HOLDS,
    "Covariance of the Gaussian": CORRECTED,
    "Algorithm 1, line 10": CORRECTED,
    "Newton matrix of 2ndEnSGD": CORRECTED,
    "Temperature of the chain": CORRECTED,
    "alpha = 0.75": CORRECTED,
    "Steps of TRADES": CORRECTED,
    "Algorithm 1 as printed trains": CORRECTED,
}
# Their functions compile, or solve attacks on networks: with all ingredients in `make test-slow`.
SLOW = {
    "(MON) exposes PGD",
    "(MON) for exact attacks",
    "The constant exceeds C_thth",
    "Roughness for every p",
    "Kink at the origin",
    "Gradient and Hessian in closed form",
    "Hessian of the adversarial loss",
    "(CURV)",
    "Linf attacks with a fixed active set",
    "Lemma 5",
    "Projection",
    "Lipschitz attack under any convex constraint",
    "Optima of -F",
    "Temperature of the chain",
    "Steps of TRADES",
    "Algorithm 1 as printed trains",
    "Smooth networks",
    "Lemma 4 for ReLU networks",
    "Theorem 3, spectral",
    "Smoothness of -F, L2 and Linf",
    "Border of K",
    "Lemma 5, sharp",
    "Smoothed convex loss",
}
# So do these at each of the three counts of the test of seeds.
REPEATED = SLOW | {
    "Lemma 4",
    "Theorem 3",
    "Descent below L(0)",
    "Covariance of the Gaussian",
    "Exact attack of the swish neuron",
    "Proposition 1, gradient, Linf",
    "Proposition 1, value",
    "Sharper than Theorem 1",
    "Theorem 1",
    "Proof of Theorem 2",
    "Linf attacks across active sets",
    "Norm from the loss",
    "Continuity at theta_i = 0",
    "Smoothness bounds the Hessian",
    "Sharpness at a smooth minimum",
}


def marked(slow: set[str]) -> list:
    marks = lambda name: [pytest.mark.slow] if name in slow else []
    return [pytest.param(name, marks=marks(name)) for name in sorted(VERDICTS)]


def find(name) -> Claim:
    return next(claim for claim in CLAIMS if claim.name == name)


def test_every_claim_has_an_expected_verdict_an_origin_and_a_sabotage():
    names = [claim.name for claim in CLAIMS]
    assert len(set(names)) == len(names)
    assert set(names) == set(VERDICTS)
    for claim in CLAIMS:
        assert claim.sabotage, claim.name
        assert claim.origin in (PRINTED, IMPLIED, OURS)
        assert claim.statement and (claim.origin != OURS or not claim.correction)
        assert (VERDICTS[claim.name] == CORRECTED) == bool(claim.correction), claim.name
        # What is said to be false as printed is printed.
        assert VERDICTS[claim.name] != FALSE or claim.origin == PRINTED


@pytest.mark.parametrize("name", marked(SLOW))
def test_verdict_and_every_wrong_ingredient(name):
    claim = find(name)
    found = check(claim, seed=0, instances=400)
    assert found.verdict == VERDICTS[name], found
    assert bool(found.counterexample) == (found.verdict != HOLDS)
    turned = sabotage(claim, found.verdict, seed=0, instances=400)
    assert [entry.ingredient for entry in turned] == list(claim.sabotage)
    assert all(entry.turned for entry in turned), turned
    if claim.correction:  # some wrong ingredient is in the correction
        assert BROKEN in [entry.verdict for entry in turned], turned
    if name in ("Lemma 1", "Lemma 2", "Lemma 2, corollary", "Linf attack away from the axes"):
        assert found.tightness == pytest.approx(1.0, rel=1e-10)  # equality cases


@pytest.mark.parametrize("name", marked(REPEATED))
def test_seed_and_instances_are_obeyed(name):
    claim = find(name)

    def drawn(seed, count):
        trials = claim.run(np.random.default_rng(seed), count)
        return [
            (t.measured.tolist(), t.bound.tolist(), t.witness(0)) for t in trials if t is not None
        ]

    few, many = (1000, 3000) if name == "Temperature of the chain" else (24, 96)
    first = drawn(0, few)
    assert str(first) == str(drawn(0, few))
    assert str(first) != str(drawn(1, few))
    assert str(first) != str(drawn(0, many))


def test_files(tmp_path, capsys):
    options = [f"--output={tmp_path}", "--instances=64", "--only=Lemma 2", "--sabotage"]
    assert claims.main(options) == 0
    page = json.loads((tmp_path / "claims.json").read_text(encoding="utf-8"))
    assert [record["name"] for record in page["claims"]] == ["Lemma 2", "Lemma 2, corollary"]
    assert [record["origin"] for record in page["claims"]] == [PRINTED, PRINTED]
    assert all(e["turned"] for record in page["claims"] for e in record["sabotage"])
    assert page["errata"].keys() == set(errata.NUMBERS)
    assert re.fullmatch(r"[0-9a-f]{12}\+?|", page["environment"]["commit"])
    markdown = (tmp_path / "claims.md").read_text(encoding="utf-8")
    text = (tmp_path / "claims.html").read_text(encoding="utf-8")
    assert text.count('src="data:image/png;base64,') == text.count("<img") == 4
    assert "://" not in text  # nothing is fetched
    for page in (markdown, text):
        assert "Counterexample" in markdown
        assert "holds as corrected" in page
        assert "1 % smaller" in page  # a wrong ingredient
        assert "the gradient in the parameters is C_θ x-Lipschitz in x" in page  # E20
        assert "x&#x27;(b)|" in page or "x'(b)|" in page  # the statement
    assert "Lemma 2" in capsys.readouterr().out


def test_a_wrong_ingredient_that_goes_unnoticed_fails_the_command(tmp_path, monkeypatch, capsys):
    lemma = find("Lemma 2")._replace(name="Never fails", sabotage={"more": dict(scale=1e9)})
    monkeypatch.setattr(claims, "CLAIMS", [lemma])
    monkeypatch.setattr(claims, "to_html", lambda *_: "")  # no figures
    options = [f"--output={tmp_path}", "--instances=64"]
    assert claims.main(options) == 0
    assert claims.main([*options, "--sabotage"]) == 1
    assert "UNNOTICED" in capsys.readouterr().out


@pytest.mark.slow
def test_the_whole_command(tmp_path):
    assert claims.main([f"--output={tmp_path}", "--instances=400", "--sabotage"]) == 0
    page = json.loads((tmp_path / "claims.json").read_text(encoding="utf-8"))
    records = {record["name"]: record for record in page["claims"]}
    assert {name: record["verdict"] for name, record in records.items()} == VERDICTS
    assert records["Theorem 3"]["tightness"] < records["Theorem 3, spectral"]["tightness"]
    assert records["Lemma 5"]["tightness"] < records["Lemma 5, sharp"]["tightness"]


@pytest.mark.parametrize("number", errata.NUMBERS)
def test_every_erratum_is_checked_or_has_a_reason(number):
    checked, reason = errata.claims_of(number), errata.NOT_CHECKABLE.get(number)
    assert bool(checked) != bool(reason), (checked, reason)
    assert set(checked) <= set(VERDICTS)


def test_errata_are_read_off_the_places():
    assert errata.claims_of("E1") == ["det K > 0 is sufficient", "det K > 0 in odd dimension"]
    assert errata.claims_of("E99") == []


def test_the_texts_of_the_errata_hold_no_tex():
    found = errata.texts()
    assert list(found) == list(errata.NUMBERS)
    for entry in found.values():
        assert all(entry[name] for name in ("title", "where", "printed", "correct"))
        assert not re.search(r"[\\$]|\]\(", " ".join(entry.values())), entry


def trial(ratio):
    return Trial(np.array([0.5, ratio]), np.ones(2), lambda i: f"case {i}")


@pytest.mark.parametrize(
    ("origin", "printed", "corrected", "verdict"),
    [
        (PRINTED, 0.9, None, HOLDS),
        (PRINTED, 1.1, None, FALSE),
        (IMPLIED, 1.1, None, REFUTED),
        (OURS, 1.1, None, BROKEN),
        (PRINTED, 1.1, 0.9, CORRECTED),
        (IMPLIED, 1.1, 0.9, CORRECTED),
        (PRINTED, 1.1, 1.2, BROKEN),
        (PRINTED, np.nan, None, FALSE),
    ],
)
def test_verdict_is_read_off_the_numbers(origin, printed, corrected, verdict):
    run = lambda rng, count: (trial(printed), None if corrected is None else trial(corrected))
    found = check(Claim("x", "y", origin, "z", "", run, {}, 1), seed=0, instances=8)
    assert found.verdict == verdict
    assert ("case 1" in found.counterexample) == (verdict != HOLDS)
    assert (found.tightness is None) == (verdict not in (HOLDS, CORRECTED))


def test_a_claim_without_instances_is_no_verdict():
    empty = Trial(np.zeros(0), np.zeros(0), str)
    with pytest.raises(ValueError, match="none to try"):
        check(
            Claim("x", "y", OURS, "z", "", lambda rng, count: (empty, None), {}, 1),
            seed=0,
            instances=8,
        )


def test_bounds_of_zero_and_below():
    """A bound of 0 is met by 0 alone, a negative one by nothing."""
    measured, bound = np.array([0.0, 1e-300, 0.5, np.nan]), np.array([0.0, 0.0, -1.0, 1.0])
    assert Trial(measured, bound, str).ratios().tolist() == [0.0, np.inf, np.inf, np.inf]


def test_joined_trials_keep_their_witnesses():
    both = join(trial(0.7), within(np.array([0.1, 0.2, 0.3]), 2.0, "part"))
    assert both.ratios().tolist() == pytest.approx([0.5, 0.7, 0.05, 0.1, 0.15])
    assert [both.witness(i) for i in (1, 2, 4)] == [
        "case 1",
        "part, instance 0",
        "part, instance 2",
    ]


def test_instances_depend_on_the_seed_alone():
    lemma = find("Theorem 1")
    results = [check(lemma, seed=seed, instances=64) for seed in (0, 0, 1)]
    assert results[0] == results[1]
    assert results[0].measured != results[2].measured


def test_misuse(capsys):
    for option, message in (("--instances=2", "at least 8"), ("--only=Lemma 99", "is in no name")):
        with pytest.raises(SystemExit):
            claims.main([option])
        assert message in capsys.readouterr().err
