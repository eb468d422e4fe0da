"""RobustBench's models by name: what is published of each, and the network that its file fits.

>>> wanted = entry("Wang2023Better_WRN-28-10", dataset="cifar10", threat="linf")
>>> wanted.clean, wanted.autoattack, wanted.eps
(92.44, 67.31, '8/255')
>>> wanted.architecture, dict(wanted.options)
('dm_wide_resnet', {'depth': 28, 'width': 10, 'activation': 'silu'})

``build(wanted)`` makes the module and ``models.load_torch(file, module)`` reads the weights, which
are not part of this package. The registry is made from RobustBench's public files; leaderboards of
corruptions are left out, since their figures are not AutoAttack's.
"""

from ._entries import DATASETS as DATASETS
from ._entries import THREATS as THREATS
from ._entries import Entry as Entry
from ._entries import entries as entries
from ._entries import entry as entry
from ._entries import source as source
from ._networks import UNCOUNTED as UNCOUNTED
from ._networks import build as build
from ._networks import fingerprint as fingerprint
from ._networks import problem as problem
