"""The claims checker: verdicts come from numbers, and the command finds the errata."""

import json

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from theory import claims
from theory._claims_registry import (
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
}


def test_verdicts_and_files(tmp_path, capsys):
    assert claims.main([f"--output={tmp_path}", "--instances=400"]) == 0
    page = json.loads((tmp_path / "claims.json").read_text(encoding="utf-8"))
    records = {record["name"]: record for record in page["claims"]}
    assert {name: record["verdict"] for name, record in records.items()} == VERDICTS
    for name, record in records.items():
        assert bool(record["counterexample"]) == (VERDICTS[name] != HOLDS)
        assert bool(record["correction"]) == (VERDICTS[name] == CORRECTED)
    # Equality cases are tight.
    for name in ("Lemma 2", "Lemma 2, corollary", "Linf attack away from the axes"):
        np.testing.assert_allclose(records[name]["tightness"], 1.0, rtol=1e-10)
    assert records["Theorem 3"]["tightness"] < records["Theorem 3, spectral"]["tightness"]
    text = (tmp_path / "claims.md").read_text(encoding="utf-8")
    assert all(name in text for name in VERDICTS)
    assert "counterexample" in text.lower()
    assert "Lemma 2" in capsys.readouterr().out


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
