"""TRADES with EntropySGD (TRADES+EnSGD).

Command:   python -m experiments.cifar10 --config=configs/trades_ensgd.py
Time:      as TRADES.
Paper:     Table 2, CIFAR-10, WideResNet-34-10: 53.4 +- 0.1 % under AutoAttack (mean +- std, 3 runs;
           checkpoint chosen on test PGD-20).
"""

from experiments import settings


def get_config(scale=None):
    config = settings.base(scale)
    config.method = "trades_ensgd"
    config.objective = "trades"
    config.optimizer = "entropy_sgd"
    return config.lock()
