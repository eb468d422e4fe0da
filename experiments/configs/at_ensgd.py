"""Adversarial training with EntropySGD (AT+EnSGD).

Command:   python -m experiments.cifar10 --config=configs/at_ensgd.py
Time:      as AT: an epoch is one pass over the data, whatever the optimizer.
Paper:     Table 1, CIFAR-10, PreActResNet-18: 49.2 +- 0.4 % under AutoAttack (mean +- std, 3 runs;
           checkpoint chosen on test PGD-20). n_in 20 for PreActResNet-18, 30 for WRN-34-10.
"""

from experiments import settings


def get_config(scale=None):
    config = settings.base(scale)
    config.method = "at_ensgd"
    config.optimizer = "entropy_sgd"
    return config.lock()
