"""The tables of docs/autoattack.md and docs/scale.md, from records made up here."""

import json

from benchmarks import _parity_tables, _scale_tables

HERE = {"commit": "abc", "device": "a CPU", "date": "2026-01-01"}
ATTACKS = _parity_tables.ATTACKS


def cells_of(line):
    return [text.strip() for text in line.strip("|").split("|")]


def rendered(folder, **records):
    for name, record in records.items():
        path = folder / f"{name}.json"
        path.write_text(json.dumps({"environment": HERE} | record), encoding="utf-8")
    return _parity_tables.render(folder) | _scale_tables.render(folder)


def pair(first, second, agreement):
    return [
        {"first": first, "second": second, "attack": attack, "agreement": agreement,
         "accuracy_first": 0.5, "accuracy_second": 0.25}
        for attack in ATTACKS
    ]  # fmt: skip


def test_only_records_that_exist_have_tables(tmp_path):
    assert rendered(tmp_path) == {}


def test_pairs_of_runs_stand_where_they_belong(tmp_path):
    rows = (
        pair("jaxadv, key 0", "reference, seed 0", 0.9)
        + pair("jaxadv, key 1", "reference, seed 0", 0.92)
        + pair("jaxadv, key 0", "reference, draws of key 0", 1.0)
        + pair("jaxadv, key 1", "reference, draws of key 0", 0.8)
        + pair("jaxadv, key 0", "jaxadv, key 1", 0.95)
        + pair("reference, seed 0", "reference, seed 1", 0.96)
        + pair("reference, seed 0", "reference, draws of key 0", 0.7)
    )
    spread = [
        {"runs": f"{side}, 2 runs", "attack": attack, "mean": mean, "std": std}
        for side, mean, std in (("jaxadv", 0.5, 0.01), ("reference", 0.25, 0.0))
        for attack in ATTACKS
    ]
    options = {"number": 1000, "keys": [0, 1], "reference_seeds": [0, 1]}
    record = {"options": options, "rows": rows, "spread": spread}
    lines = rendered(tmp_path, parity_mnist_1000=record)["parity 1000"].splitlines()
    assert [cells_of(line)[1] for line in lines[2:9]] == [
        "50.0 ± 1.0", "25.0", "25.0 [22.4, 27.8]", "95", "96", "90 to 92", "**100.0 [99.6, 100.0]**"
    ]  # fmt: skip
    assert lines[-1] == "`parity_mnist_1000.json`: commit abc; a CPU, 2026-01-01."


def test_single_attacks(tmp_path):
    side = {"images": 100, "found": 98, "median": 0.351234, "median_95": [0.35, 0.36],
            "mean": 0.4, "mean_95": 0.01}  # fmt: skip
    fab = {"options": {"num_steps": 20, "norm": "linf", "first_alpha": False, "number": 10_000},
           "network": "mnist_advertorch_lenet5_clean"}  # fmt: skip
    both = {"fab": {"jaxadv": side, "reference": side, "within 0.1 %": 0.84}}
    pgd = {"images": 10_000, "clean": 9864, "jaxadv": 9325, "PyTorch": 9326, "different": 3}
    apgd = {"images": 1000, "jaxadv": [840, 850], "reference": [846, 850],
            "reference's draws": [846, 849], "same": [1000, 999]}  # fmt: skip
    found = rendered(
        tmp_path,
        parity_fab_linf_clean=fab | both,
        parity_fab_l2_clean=fab | {"fab": {"jaxadv": side}},
        parity_pgd40={"options": {"num_steps": 40}, "pgd": pgd},
        parity_apgd_ce_runs={"apgd": apgd},
    )
    norm = "0.3512 [0.35, 0.36] (mean 0.400 ± 0.010, found for 98.0 [93.0, 99.4] % of 100)"
    alone, beside = map(cells_of, found["parity fab"].splitlines()[2:4])
    assert alone == ["trained cleanly, Linf", norm, "", "", "1.423"]
    assert beside == ["trained cleanly, Linf", norm, norm, "84 [76, 90]", "0.112"]
    assert found["parity fab"].endswith(
        "`parity_fab_l2_clean.json`, `parity_fab_linf_clean.json`: commit abc; a CPU, 2026-01-01."
    )
    row = cells_of(found["parity pgd"].splitlines()[2])
    assert row[1:] == [
        "6.75 [6.27, 7.26]",
        "6.74 [6.27, 7.25]",
        "6.8",
        "0.03 [0.01, 0.09] (3 images)",
    ]
    rows = [cells_of(line)[2:] for line in found["parity runs"].splitlines()[2:5]]
    assert rows == [["84.50 ± 0.71", ""], ["84.80 ± 0.28", ""], ["84.75 ± 0.21", "99.9 to 100"]]


def test_costs_name_budget_survivors_and_rates(tmp_path):
    once, often = (
        {"median": 2.0, "least": least, "greatest": 2.0} for least in (2.0, 1.5)
    )  # fmt: skip
    ratios = dict.fromkeys((*ATTACKS[1:], "total"), once) | {"total": often}
    report = {
        "options": {"checkpoint": None, "resnet_width": 16, "number": 8, "num_steps": 20,
                    "num_queries": 1000},
        "ratio": ratios,
        "accuracy": {"square": 0.5},
        "ratio_with_compilation": {"median": 0.75, "least": 0.7, "greatest": 0.8},
        "evaluations": {"square": {"forward": 1000, "backward": 0}},
        "seconds": {"square": {"jaxadv": often}},
        "mflop_of_a_pass": {"forward": 60.0, "backward": 60.0},
    }  # fmt: skip
    text = rendered(tmp_path, autoattack_tiny=report)["cost"]
    assert cells_of(text.splitlines()[2])[1:] == [
        "50 % of 8", "2.0", "2.0", "2.0", "2.0", "**2.0 (1.5 to 2.0)**",
        "0.8 (0.7 to 0.8)",
    ]  # fmt: skip
    assert "20 steps, 1,000 queries: square 30 (30 to 40)." in text


def test_statistics_of_batch_norm(tmp_path):
    error = lambda mean: {"variance": {"least": mean + 1e-7, "greatest": mean + 2e-7}}
    accuracy = [
        {"input_mean": mean, "form": form, "errors": error(mean)}
        for mean in (0.0, 10.0)
        for form in _scale_tables.FORMS
    ]
    ways = {"forward": 2, "forward and backward": 4}
    collectives = dict.fromkeys(("two passes", "shifted", "combined"), ways)
    record = {"accuracy": accuracy, "collectives": collectives}
    lines = rendered(tmp_path, batch_norm=record)["batch norm"].splitlines()
    assert cells_of(lines[2]) == ["0", *["1.0e-7 to 2.0e-7"] * 5]
    assert cells_of(lines[3]) == ["10", *["1.0e+01 to 1.0e+01"] * 5]
    assert cells_of(lines[4])[1:] == ["2 / 4"] * 5
