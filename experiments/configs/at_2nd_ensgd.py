"""Adversarial training with second-order EntropySGD (AT+2ndEnSGD).

Command:   python -m experiments.cifar10 --config=configs/at_2nd_ensgd.py
Time:      as AT, with one more copy of the parameters in memory.
Paper:     Table 3, CIFAR-10, PreActResNet-18: 48.93 +- 0.09 % under AutoAttack (mean +- std,
           3 runs; checkpoint chosen on test PGD-20).

The paper's Newton matrix omits the inverse temperature of the sampled measure, so it differs from
the identity by less than 1e-3 and has no effect. --config.entropy.beta_aware=true divides by the
matrix of the measure actually sampled.
"""

from experiments import settings


def get_config(scale=None):
    config = settings.base(scale)
    config.method = "at_2nd_ensgd"
    config.optimizer = "entropy_sgd"
    config.entropy.second_order = True
    return config.lock()
