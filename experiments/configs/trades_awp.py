"""TRADES with adversarial weight perturbation (TRADES+AWP), SGD.

Command:   python -m experiments.cifar10 --config=configs/trades_awp.py
Time:      as TRADES, plus one forward and backward pass per minibatch.
Paper:     Table 2, CIFAR-10, WideResNet-34-10: 55.6 +- 0.4 % under AutoAttack (mean +- std, 3 runs;
           checkpoint chosen on test PGD-20). AWP is off for the first 10 epochs; the code counts
           from 1, so nine.
"""

from experiments import settings


def get_config(scale=None):
    config = settings.base(scale)
    config.method = "trades_awp"
    config.objective = "trades"
    config.awp.enabled = True
    return config.lock()
