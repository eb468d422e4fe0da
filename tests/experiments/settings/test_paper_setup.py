"""Resolved hyper-parameters of all methods on all data sets, against formulas F."""

import pytest

from experiments import settings
from experiments.cli import train as cli
from experiments.run import phases
from jaxadv import training
from tests.helpers.tiny_runs import ALL_METHODS, spans

# formulas F.2 and F.3, by data set. n_in: of AT+EnSGD, ResNet-18; gamma_A: with SGD, with EnSGD.
# fmt: off
DATA = {
    #           step     lr    augmentation            n_in  gamma_A       warm-up batches
    "cifar10":  (2 / 255, 0.1,  "reflect_crop_flip",     20, (0.01, 0.005), 0, 391),
    "cifar100": (2 / 255, 0.1,  "zero_crop_flip_rotate", 30, (0.01, 0.007), 0, 391),
    "svhn":     (1 / 255, 0.01, "none",                  30, (0.01, 0.005), 5, 573),
}
#            method                  objective        AWP    EnSGD  2nd    alpha
METHODS = {
    "at":                     ("cross_entropy", False, False, False, 0.75),
    "at_ensgd":               ("cross_entropy", False, True,  False, 0.75),
    "at_2nd_ensgd":           ("cross_entropy", False, True,  True,  0.75),
    "awp":                    ("cross_entropy", True,  False, False, 0.75),
    "awp_ensgd":              ("cross_entropy", True,  True,  False, 0.75),
    "awp_2nd_ensgd":          ("cross_entropy", True,  True,  True,  0.75),
    "trades":                 ("trades",        False, False, False, 0.75),
    "trades_ensgd":           ("trades",        False, True,  False, 0.75),
    "trades_awp":             ("trades",        True,  False, False, 0.75),
    "trades_awp_ensgd":       ("trades",        True,  True,  False, 0.30),
    "trades_awp_ensgd_tuned": ("trades",        True,  True,  False, 0.75),
}
# fmt: on
COMMON = {
    "num_epochs": 200,
    "batch_size": 128,
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "lr_drops": (0.5, 0.75),
    "lr_factor": 0.1,
    "threat.norm": "linf",
    "threat.num_steps": 10,
    "eval.eps": 8 / 255,
    "eval.num_steps": 20,
    "eval.num_restarts": 1,
    "trades.beta": 6.0,
    "trades.start_noise": 0.001,
    "entropy.gamma": 0.03,
    "entropy.noise": 1e-4,
    "entropy.inner_learning_rate": 0.1,
    "entropy.momentum": 0.9,
    "entropy.inner_momentum": 0.9,
    "entropy.weight_decay": 5e-4,
    "entropy.beta_aware": False,
    "entropy.alpha_weighs": "old",
}


def test_the_table_is_complete():
    assert set(METHODS) == set(ALL_METHODS)


def expectation(method, dataset):
    step, rate, augment, n_in, gammas, warmup, batches = DATA[dataset]
    objective, awp, ensgd, second, alpha = METHODS[method]
    trades = objective == "trades"
    expected = COMMON | {
        "objective": objective,
        "optimizer": "entropy_sgd" if ensgd else "sgd",
        "model": "preact_resnet18",
        "learning_rate": rate,
        "entropy.learning_rate": rate,
        "entropy.second_order": second,
        "entropy.alpha": alpha,
        "entropy.new_weight": pytest.approx(1 - alpha),
        "entropy.n_in": 30 if awp else 20 if trades else n_in,
        "augment": augment,
        "threat.eps": 8 / 255,
        "threat.step_size": step,
        "eval.step_size": step,
        "awp.enabled": awp,
        "awp.gamma": 0.0 if not awp else 0.005 if trades else gammas[ensgd],
        "awp.decay_perturbed": True,
        "warmup_epochs": 10 if trades and awp else warmup,
        "first_epoch": int(trades),
        "lr_unit": "epoch" if trades else "minibatch",
        "normalize": not trades,
        "bn.attack": "eval" if trades else "train",
        "bn.clean_pass": not trades,
    }
    if trades and dataset == "cifar10":
        paper = {"threat.eps": 0.031, "threat.step_size": 0.003, "trades.preset": "paper"}
        expected |= paper | {"model": "wrn34_10", "augment": "zero_crop_flip"}
    return expected, batches


@pytest.mark.parametrize("dataset", DATA)
@pytest.mark.parametrize("method", METHODS)
def test_the_resolved_fields_are_the_papers(method, dataset):
    found = dict(settings.flatten(settings.load_config(method, "paper", dataset)))
    expected, _ = expectation(method, dataset)
    assert {name: found[name] for name in expected} == expected


@pytest.mark.parametrize("dataset", DATA)
@pytest.mark.parametrize("method", METHODS)
def test_phases(method, dataset):
    """SVHN: 5 epochs of SGD first. TRADES+AWP: 10, of which the code runs 9. Tuned: until 150."""
    expected, batches = expectation(method, dataset)
    config = settings.load_config(method, "paper", dataset)
    found, n_in = spans(config, batches), config.entropy.n_in
    if not METHODS[method][2]:
        assert found == [(0, 0, 200 * batches)]
        return
    warm = expected["warmup_epochs"] - expected["first_epoch"]
    warm = max(warm, 0) * batches
    parts = [(0, 0, warm)] if warm else []
    if method == "trades_awp_ensgd_tuned":
        chains = -(-(150 * batches - warm) // 30)
        end = warm + 30 * chains  # the chain that crosses the end of epoch 150 is finished
        assert 150 * batches <= end < 150 * batches + 30
        parts += [(n_in, warm, end), (0, end, 200 * batches)]
    else:
        parts += [(n_in, warm, 200 * batches)]
    assert found == parts


@pytest.mark.parametrize("dataset", ["cifar10", "svhn"])
@pytest.mark.parametrize("method", ["awp", "trades_awp"])
def test_awp_begins_after_the_warm_up(method, dataset):
    config = settings.load_config(method, "paper", dataset)
    gamma = phases.weight_perturbation(config, 10)
    epochs = {("awp", "cifar10"): 0, ("awp", "svhn"): 5}.get((method, dataset), 9)
    full = expectation(method, dataset)[0]["awp.gamma"]
    at = lambda step: float(gamma(step)) if callable(gamma) else gamma
    assert at(10 * epochs) == pytest.approx(full)
    if epochs:
        assert at(10 * epochs - 1) == 0


@pytest.mark.parametrize(("method", "n_in"), [("at_ensgd", 30), ("awp_ensgd", 30)])
def test_the_wide_network_needs_nothing_but_its_name(method, n_in):
    arguments = [f"--config=configs/{method}.py", "--config.model=wrn34_10"]
    config = cli.parse(["cifar10", *arguments], "cifar10").config
    assert config.entropy.n_in == n_in and config.model == "wrn34_10" and config.width is None


def test_rates_of_the_objectives():
    """AT drops at the last minibatch of epoch 99; TRADES with its 100th epoch, counted from 1."""
    for method, boundary in (("at", 100 * 391 - 1), ("trades", 99 * 391)):
        config = settings.load_config(method, "paper", "cifar10")
        rate = training.step_decay(
            config.learning_rate,
            num_epochs=config.num_epochs,
            batches_per_epoch=391,
            drops=config.lr_drops,
            factor=config.lr_factor,
            unit=config.lr_unit,
            first_epoch=config.first_epoch,
        )
        assert float(rate(boundary - 1)) == pytest.approx(0.1)
        assert float(rate(boundary)) == pytest.approx(0.01)


@pytest.mark.parametrize("dataset", DATA)
def test_l2_is_one_field(dataset):
    config = cli.parse([dataset, "--config.threat.norm=l2"], dataset).config
    assert (config.threat.eps, config.threat.step_size) == (128 / 255, 15 / 255)
    assert (config.eval.eps, config.eval.step_size) == (128 / 255, 15 / 255)
