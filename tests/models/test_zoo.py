"""The registry of RobustBench's models: its consistency, and the networks that it names."""

import collections
import dataclasses
from typing import Any

import pytest

from jaxadv import models
from jaxadv.models import zoo

# The leaderboards of robustbench 1.1.1, and how many of their entries must load at least.
BOARDS = {
    ("cifar10", "linf"): (76, 0.80),
    ("cifar10", "l2"): (21, 0.90),
    ("cifar100", "linf"): (38, 0.84),
    ("imagenet", "linf"): (30, 0.31),
}
ENTRIES = zoo.entries()
NETWORKS = {
    (e.architecture, repr(sorted(e.options.items())), e.num_classes): e
    for e in ENTRIES
    if e.architecture in models.MODELS
}
# Networks of few layers, which are traced within half a second.
QUICK = ("resnet18_cifar", "preact_resnet18", "dm_preact_resnet18", "resnet18")


def test_every_leaderboard_is_whole():
    counts = collections.Counter((found.dataset, found.threat) for found in ENTRIES)
    assert counts == {board: number for board, (number, _) in BOARDS.items()}
    keys = {(found.id, found.dataset, found.threat) for found in ENTRIES}
    assert len(keys) == len(ENTRIES)
    assert zoo.source()["package"] == "robustbench 1.1.1"


@pytest.mark.parametrize("found", ENTRIES, ids=lambda e: f"{e.id}-{e.dataset}-{e.threat}")
def test_an_entry_is_consistent(found):
    assert 0 <= found.best_known <= found.autoattack <= found.clean <= 100
    assert found.images == (5_000 if found.dataset == "imagenet" else 10_000)
    usual = {"cifar10": 8 / 255, "cifar100": 8 / 255, "imagenet": 4 / 255}[found.dataset]
    expected = 0.5 if found.threat == "l2" else usual
    assert found.radius == pytest.approx(expected, rel=0.02)  # some are evaluated at 0.031
    assert found.link.startswith("http") and found.paper and found.described
    assert found.extra_data in (True, False, None)
    assert (found.preprocessing is None) == (found.dataset != "imagenet")
    assert found.parameters > 10**6 and len(found.tensors) == 16
    assert (found.mean is None) == (found.std is None)
    if found.mean is not None:
        assert len(found.mean) == len(found.std) == 3 and min(found.std) > 0.1
    if found.architecture is None:
        assert not found.options and found.mean is None
        assert zoo.problem(found) == f"no network for RobustBench's class {found.network}"


def test_accuracies_fall_along_a_leaderboard():
    for dataset, threat in BOARDS:
        best = [found.best_known for found in zoo.entries(dataset=dataset, threat=threat)]
        assert best == sorted(best, reverse=True)


def test_figures_of_the_leaderboards():
    found = zoo.entry("Wang2023Better_WRN-28-10", dataset="cifar10", threat="linf")
    assert (found.clean, found.autoattack, found.extra_data) == (92.44, 67.31, False)
    assert found.mean == (0.4914, 0.4822, 0.4465) and found.parameters == 36_479_194
    sparse = zoo.entry("Amini2024MeanSparse_S-WRN-94-16")
    assert (sparse.autoattack, sparse.best_known) == (75.28, 73.10)
    assert zoo.entry("Zhang2019Theoretically").eps == "0.031"
    assert zoo.entry("Hendrycks2019Using", dataset="cifar10").mean == (0.5, 0.5, 0.5)
    assert zoo.entry("Ding2020MMA", threat="l2").options["standardize"] == "image"
    assert zoo.entry("Wong2020Fast", dataset="imagenet").side == 288


def test_entries_are_read_only():
    found: Any = zoo.entry("Carmon2019Unlabeled")
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.clean = 100.0
    with pytest.raises(TypeError):
        found.options["depth"] = 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(id="Wang2023Beter_WRN-28-10"), "mean 'Wang2023Better_WRN-28-10'.{,80}$"),
        (dict(id="Ding2020MMA"), "in 2 leaderboards: cifar10 linf, cifar10 l2; give dataset .*thr"),
        (dict(id="Ding2020MMA", dataset="cifar100"), "dataset='cifar100' does not fit id='Ding"),
        (dict(id="Ding2020MMA", dataset="cifar"), "dataset is 'cifar', .*Did you mean 'cifar10'"),
    ],
)
def test_an_entry_that_is_not_there(arguments, message):
    with pytest.raises(ValueError, match=message):
        zoo.entry(**arguments)


def test_a_network_that_is_not_there():
    for found in ENTRIES:
        if found.architecture is None:
            with pytest.raises(ValueError, match=f"{found.id} does not load: no network for"):
                zoo.build(found)


def test_the_normalization_is_that_of_the_entry():
    module = zoo.build(zoo.entry("Engstrom2019Robustness", dataset="cifar10", threat="linf"))
    assert module.std == (0.2023, 0.1994, 0.201) and module.num_classes == 10
    module = zoo.build(zoo.entry("Addepalli2021Towards_PARN18"))
    assert module.mean is None and module.num_classes == 100


@pytest.mark.parametrize(
    "key",
    [pytest.param(key, marks=[] if key[0] in QUICK else pytest.mark.slow) for key in NETWORKS],
    ids=lambda key: "-".join(map(str, key)),
)
def test_the_tensors_are_those_of_the_public_class(key):
    """Names and shapes; the digests were taken from RobustBench's classes."""
    assert zoo.problem(NETWORKS[key]) is None


def test_other_tensors_are_noticed():
    found = zoo.entry("Addepalli2021Towards_RN18")
    assert zoo.problem(found) is None
    other = dataclasses.replace(found, tensors=zoo.fingerprint({"fc.weight": (10, 512)}))
    assert "are not those of the public file" in (zoo.problem(other) or "")
    wrong = dataclasses.replace(found, options={"depth": 4})
    assert "option of 'resnet18_cifar' is 'depth'" in (zoo.problem(wrong) or "")


def test_counters_do_not_change_a_fingerprint():
    shapes = {"a.weight": (3, 4), "a.running_mean": (3,)}
    again = {"a.num_batches_tracked": (), **dict(reversed(shapes.items()))}
    assert zoo.fingerprint(again) == zoo.fingerprint(shapes)
    assert zoo.fingerprint({**shapes, "a.weight": (4, 3)}) != zoo.fingerprint(shapes)


@pytest.mark.slow
def test_the_share_that_loads():
    for (dataset, threat), (number, share) in BOARDS.items():
        found = zoo.entries(dataset=dataset, threat=threat)
        plain = [e for e in found if "XCiT" not in e.described]
        assert sum(zoo.problem(e) is None for e in plain) >= share * number
