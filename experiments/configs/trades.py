"""TRADES with SGD.

Command:   python -m experiments.cifar10 --config=configs/trades.py
Time:      200 epochs of WideResNet-34-10, for a GPU: the AWP authors report 1,636 s per epoch for
           AWP on that network, and TRADES trains on twice the images.
Paper:     Table 2, CIFAR-10, WideResNet-34-10: 52.9 +- 0.3 % under AutoAttack (mean +- std, 3 runs;
           checkpoint chosen on test PGD-20).

The training attack is the paper's: radius 0.031, step 0.003. The code the paper follows is run with
8/255 and 2/255: --config.trades.preset=awp.
"""

from experiments import settings


def get_config(scale=None):
    config = settings.base(scale)
    config.method = "trades"
    config.objective = "trades"
    return config.lock()
