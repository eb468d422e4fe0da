"""FAB, the fast adaptive boundary attack."""

from .attack import fab as fab
from .attack import fab_targeted as fab_targeted
