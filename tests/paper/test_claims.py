"""The claims checker: verdicts come from numbers, and the command finds the errata."""

import json

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
    Claim,
    Trial,
    check,
)

VERDICTS = {
    "Proposition 1, value": HOLDS,
    "Proposition 1, gradient, Linf": CORRECTED,
    "Lemma 2": HOLDS,
    "Lemma 2, corollary": CORRECTED,
    "Theorem 1": HOLDS,
    "Lemma 3, same signs": HOLDS,
    "Lemma 3, signs differ": CORRECTED,
    "Linf attack away from the axes": HOLDS,
    "Theorem 2": HOLDS,
    "Assumption 1": CORRECTED,
    "Theorem 3": HOLDS,
    "Theorem 3, spectral": HOLDS,
    "Smoothed convex loss": HOLDS,
    "Smoothed Lipschitz loss": HOLDS,
    "Covariance of the Gaussian": CORRECTED,
    "Optima of -F": FALSE,
    "Algorithm 1, line 10": CORRECTED,
    "Newton matrix of 2ndEnSGD": CORRECTED,
    "Exact attack of the swish neuron": HOLDS,
    "The smooth corner of the swish neuron": FALSE,
    "(MON) for exact attacks": HOLDS,
    "Lemma 1": HOLDS,
    "Danskin": HOLDS,
    "(MON) for PGD": FALSE,
    "Roughness for every p": HOLDS,
    "Kink at the origin": HOLDS,
    "Proof of Theorem 2": CORRECTED,
    "Continuity at theta_i = 0": CORRECTED,
    "Cross-smoothness": CORRECTED,
    "Multiplier of the L2 attack": CORRECTED,
    "Lemma 4": HOLDS,
    "Lemma 4, size of the neighbourhood": CORRECTED,
    "Lemma 5": HOLDS,
    "Lemma 5, sharp": HOLDS,
    "Hessian of the adversarial loss": HOLDS,
    "(CURV)": CORRECTED,
    "det K > 0 is sufficient": CORRECTED,
    "det K > 0 in odd dimension": CORRECTED,
    "Border of K": CORRECTED,
    "sigma_min(K) measures curvature": CORRECTED,
    "sigma_min(K) is a property of the attack": FALSE,
    "Flatness in the input space": CORRECTED,
    "Lipschitz attack on the sphere": HOLDS,
    "Projection": CORRECTED,
    "Lipschitz attack under any convex constraint": HOLDS,
    "Linf cannot be Lipschitz": CORRECTED,
    "Regularised attack": HOLDS,
    "Linf attacks with a fixed active set": HOLDS,
    "Stability of a vertex": HOLDS,
    "A coordinate that switches": CORRECTED,
    "Smooth networks": CORRECTED,
    "Lemma 4 for ReLU networks": HOLDS,
    "Theorem 3 on all of R^m": HOLDS,
    "Sharpness at a kink": CORRECTED,
    "Temperature of the chain": CORRECTED,
    "alpha = 0.75": CORRECTED,
    "Steps of TRADES": CORRECTED,
    "Algorithm 1 as printed trains": CORRECTED,
}
# These solve attacks on networks, which takes most of a minute to compile.
NETWORKS = {
    "Lemma 4",
    "Lemma 5",
    "Lemma 5, sharp",
    "Hessian of the adversarial loss",
    "(CURV)",
    "Linf attacks with a fixed active set",
}


def test_every_claim_has_an_expected_verdict():
    names = [claim.name for claim in CLAIMS]
    assert len(set(names)) == len(names)
    assert set(names) == set(VERDICTS)


@pytest.mark.parametrize("name", sorted(VERDICTS.keys() - NETWORKS))
def test_verdict(name):
    claim = next(claim for claim in CLAIMS if claim.name == name)
    found = check(claim, seed=0, instances=200)
    assert found.verdict == VERDICTS[name], found
    assert bool(found.counterexample) == (found.verdict != HOLDS)
    assert bool(found.correction) == (found.verdict == CORRECTED)
    if name in ("Lemma 1", "Lemma 2", "Lemma 2, corollary", "Linf attack away from the axes"):
        np.testing.assert_allclose(found.tightness, 1.0, rtol=1e-10)  # equality cases


def test_files(tmp_path, capsys):
    assert claims.main([f"--output={tmp_path}", "--instances=64", "--only=Lemma 2"]) == 0
    page = json.loads((tmp_path / "claims.json").read_text(encoding="utf-8"))
    assert [record["name"] for record in page["claims"]] == ["Lemma 2", "Lemma 2, corollary"]
    assert page["errata"].keys() == set(errata.NUMBERS)
    assert "Counterexample" in (tmp_path / "claims.md").read_text(encoding="utf-8")
    text = (tmp_path / "claims.html").read_text(encoding="utf-8")
    assert text.count('src="data:image/png;base64,') == text.count("<img") == 4
    assert "://" not in text  # nothing is fetched
    assert "holds as corrected" in text
    assert "Lemma 2" in capsys.readouterr().out


@pytest.mark.slow
def test_the_whole_command(tmp_path):
    assert claims.main([f"--output={tmp_path}", "--instances=400"]) == 0
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


def trial(ratio):
    return Trial(np.array([0.5, ratio]), np.ones(2), lambda i: f"case {i}")


@pytest.mark.parametrize(
    ("printed", "corrected", "verdict"),
    [(0.9, None, HOLDS), (1.1, None, FALSE), (1.1, 0.9, CORRECTED), (1.1, 1.2, BROKEN)],
)
def test_verdict_is_read_off_the_numbers(printed, corrected, verdict):
    run = lambda rng, count: (trial(printed), None if corrected is None else trial(corrected))
    found = check(Claim("x", "y", "z", "", run), seed=0, instances=8)
    assert found.verdict == verdict
    assert ("case 1" in found.counterexample) == (verdict != HOLDS)
    assert (found.tightness is None) == (verdict in (FALSE, BROKEN))


def test_a_bound_of_zero_is_met_by_zero_alone():
    ratios = Trial(np.array([0.0, 1e-300]), np.zeros(2), str).ratios()
    assert ratios.tolist() == [0.0, np.inf]


def test_a_wrong_bound_is_refuted():
    """Lemma 2 with 0.99 eps: the equality cases are among the instances."""
    lemma = next(claim for claim in CLAIMS if claim.name == "Lemma 2")

    def smaller(rng, count):
        printed, _ = lemma.run(rng, count)
        return printed._replace(bound=0.99 * printed.bound), None

    found = check(lemma._replace(run=smaller), seed=0, instances=100)
    assert found.verdict == FALSE


def test_instances_depend_on_the_seed_alone():
    lemma = next(claim for claim in CLAIMS if claim.name == "Theorem 1")
    results = [check(lemma, seed=seed, instances=64) for seed in (0, 0, 1)]
    assert results[0] == results[1]
    assert results[0].measured != results[2].measured


def test_misuse(capsys):
    for option, message in (("--instances=2", "at least 8"), ("--only=Lemma 99", "matches none")):
        with pytest.raises(SystemExit):
            claims.main([option])
        assert message in capsys.readouterr().err
