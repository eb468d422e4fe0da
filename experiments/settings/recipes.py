"""Settings that depend on the data set, the objective, the architecture and the scale.

A config file in ``experiments/configs`` defines the *method*. These tables contain everything else;
:mod:`experiments.settings` fills it in, and the result is saved with every run. Values for
CIFAR-10, CIFAR-100 and SVHN follow Kanai et al. and, where the paper is silent or ambiguous, the
code it builds on (the AWP and TRADES repositories).
"""

from typing import Any

SCALES = ("paper", "cpu", "laptop", "smoke")

# (eps, training and evaluation step size) by data set and norm, images in [0, 1].
# CIFAR and SVHN: Kanai et al.; for L2, the AWP authors' runs. Digits: chosen so that an
# adversarially trained small network ends well above chance and well below its clean accuracy.
# ImageNet: the radii of RobustBench and of Salman et al. (2020).
THREATS = {
    "cifar10": {"linf": (8 / 255, 2 / 255), "l2": (128 / 255, 15 / 255)},
    "cifar100": {"linf": (8 / 255, 2 / 255), "l2": (128 / 255, 15 / 255)},
    "svhn": {"linf": (8 / 255, 1 / 255), "l2": (128 / 255, 15 / 255)},
    "imagenet": {"linf": (4 / 255, 1 / 255), "l2": (3.0, 0.5)},
    "digits": {"linf": (0.2, 0.04), "l2": (1.0, 0.2)},
}

# The Linf training attack of TRADES, for config.trades.preset: the paper states the defaults of the
# reference function, whose command line (in the AWP repository) passes different values. Evaluation
# always uses the radius above.
TRADES_THREATS = {"cifar10": {"paper": (0.031, 0.003), "awp": (8 / 255, 2 / 255)}}

# Numbers per image: they span the box that bounds the radius of an L2 or L1 ball.
NUM_FEATURES = {
    "cifar10": 32 * 32 * 3,
    "cifar100": 32 * 32 * 3,
    "svhn": 32 * 32 * 3,
    "imagenet": 224 * 224 * 3,
    "digits": 8 * 8,
}

_CIFAR10 = {
    "model": "preact_resnet18",
    "num_epochs": 200,
    "batch_size": 128,
    "learning_rate": 0.1,
    "augment": "reflect_crop_flip",
    "warmup_epochs": 0,
    "threat.warmup": 0.0,
    "selection_size": 1000,
    "entropy.n_in": 20,
    "bn.refresh_batches": 100,
    "bn.clean_pass": True,
    "eval.batch_size": 500,
}
_CIFAR100 = _CIFAR10 | {"augment": "zero_crop_flip_rotate", "entropy.n_in": 30}
# The paper states both eta = 0.1 and "learning rates of SGD and EntropySGD 0.01": read as 0.01 for
# SGD and the slow weights, and 0.1 (entropy_sgd's default) for the inner loop.
_SVHN = _CIFAR10 | {
    "learning_rate": 0.01,
    "augment": "none",
    "warmup_epochs": 5,
    "entropy.n_in": 30,
}
# Not in the paper. The usual recipe for ImageNet has a weight decay of 1e-4 instead of 5e-4.
_IMAGENET = _CIFAR10 | {
    "model": "resnet50",
    "num_epochs": 90,
    "batch_size": 256,
    "augment": "resized_crop_flip",
    "selection_size": 5000,
    "bn.clean_pass": False,
}
_DIGITS = {
    "model": "small_convnet",
    "num_epochs": 200,
    "batch_size": 32,
    "learning_rate": 0.1,
    "augment": "none",
    "warmup_epochs": 0,
    "threat.warmup": 0.0,
    "selection_size": 137,
    "entropy.n_in": 20,
    "bn.refresh_batches": 40,
    "bn.clean_pass": False,
    "eval.batch_size": 360,
}

# With only about a hundred outer steps, momentum 0.9 would average over much of the run: keep the
# effective step eta / (1 - m) = 1 with a shorter memory.
FEW_OUTER_STEPS = {"entropy.learning_rate": 0.5, "entropy.momentum": 0.5}
_LAPTOP = {
    "width": 16,
    "num_epochs": 4,
    "batch_size": 64,
    "train_size": 10_000,
    "test_size": 2_000,
    "selection_size": 500,
    "entropy.n_in": 20,
    "bn.refresh_batches": 20,
    "eval.batch_size": 250,
} | FEW_OUTER_STEPS
# All images and the shape of the paper's schedule, with a network that two cores can train. The
# rates are those that benchmarks/cifar10_cpu.py chose, on held-out images of another seed.
_CPU = {
    "model": "cifar_convnet",
    "num_epochs": 10,
    "batch_size": 64,
    "learning_rate": 0.03,
    "entropy.inner_learning_rate": 0.03,
    "bn.clean_pass": False,  # no BatchNorm: it would only count
    # Without it the network stays at chance for hundreds of updates.
    "threat.warmup": 1.0,
} | FEW_OUTER_STEPS
_SMOKE = {
    "width": 4,
    "num_epochs": 2,
    "batch_size": 16,
    "train_size": 64,
    "test_size": 32,
    "selection_size": 32,
    "entropy.n_in": 2,
    "bn.refresh_batches": 2,
    "eval.batch_size": 32,
}
_SMOKE_DIGITS = {
    "num_epochs": 2,
    "train_size": 128,
    "test_size": 64,
    "selection_size": 64,
    "entropy.n_in": 2,
    "eval.batch_size": 64,
}

# By data set and scale. A scale inherits the "paper" values; for digits, which the paper does not
# use, "paper" is simply the longest of the three.
DEFAULTS: dict[str, dict[str, dict[str, Any]]] = {
    name: {"paper": paper, "cpu": paper | _CPU, "laptop": paper | _LAPTOP, "smoke": paper | _SMOKE}
    for name, paper in {"cifar10": _CIFAR10, "cifar100": _CIFAR100, "svhn": _SVHN}.items()
} | {
    "imagenet": {
        "paper": _IMAGENET,
        "laptop": _IMAGENET | _LAPTOP,
        "smoke": _IMAGENET | _SMOKE,
    },
    "digits": {
        "paper": _DIGITS,
        "laptop": _DIGITS | {"num_epochs": 60} | FEW_OUTER_STEPS,
        "smoke": _DIGITS | _SMOKE_DIGITS,
    },
}

# Settings implied by the objective on every data set. Adversarial training follows the AWP code:
# attack in train mode, learning rate updated every minibatch, epochs counted from 0. TRADES follows
# its code: attack in eval mode, images not normalized, learning rate updated once per epoch, epochs
# counted from 1, so that the "first 10 epochs" of a warm-up are 9.
OBJECTIVES: dict[str, dict[str, Any]] = {
    "cross_entropy": {
        "bn.attack": "train",
        "normalize": True,
        "lr_unit": "minibatch",
        "first_epoch": 0,
    },
    "trades": {
        "bn.attack": "eval",
        "bn.clean_pass": False,
        "normalize": False,
        "lr_unit": "epoch",
        "first_epoch": 1,
    },
}

# The paper's TRADES experiment by data set, and the part specific to its full scale.
TRADES_DATA = {"cifar10": {"augment": "zero_crop_flip"}}
TRADES_MODEL = {"cifar10": "wrn34_10"}

# gamma_A of adversarial weight perturbation by data set and optimizer; TRADES uses the last.
AWP_GAMMA = {
    "cifar10": {"sgd": 0.01, "entropy_sgd": 0.005},
    "cifar100": {"sgd": 0.01, "entropy_sgd": 0.007},
    "svhn": {"sgd": 0.01, "entropy_sgd": 0.005},
    "imagenet": {"sgd": 0.005, "entropy_sgd": 0.005},
    # A fifth of the paper's values, with which the small network stays at chance for some seeds.
    "digits": {"sgd": 0.002, "entropy_sgd": 0.001},
}
AWP_GAMMA_CPU = 0.0025  # of scale cpu, by the trials of benchmarks.cifar10_cpu
AWP_GAMMA_TRADES = 0.005
# Epochs (of 200) without AWP where the published setup has no warm-up; see above.
AWP_WARMUP = {"digits": 33}

# "AWP and EntropySGD off for the first 10 epochs" of 200; shorter runs warm up proportionally.
TRADES_AWP_WARMUP = 10
WARMUP_OF_EPOCHS = 200


def awp_gamma(dataset: str, scale: str, optimizer: str) -> float:
    """gamma_A of adversarial training; an optimizer without a value of its own has SGD's."""
    if scale == "cpu":
        return AWP_GAMMA_CPU
    by_optimizer = AWP_GAMMA[dataset]
    return by_optimizer.get(optimizer, by_optimizer["sgd"])


def inner_steps(dataset: str, model: str, *, is_trades: bool, awp: bool) -> int | None:
    """The paper's full-scale n_in where it depends on more than the data set.

    30 with AWP and 20 with TRADES, on any architecture; otherwise 30 on the wider one.
    """
    if dataset == "digits":
        return None
    if awp:
        return 30
    if is_trades:
        return 20
    return 30 if model == "wrn34_10" else None
