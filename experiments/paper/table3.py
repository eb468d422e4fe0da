"""Table 3 of the paper: Table 1 with second-order EntropySGD.

Runs are shared with Table 1.
"""

from . import table1
from .runs import Table

METHODS = {
    "at": "AT",
    "at_ensgd": "AT+EnSGD",
    "at_2nd_ensgd": "AT+2ndEnSGD",
    "awp": "AWP",
    "awp_ensgd": "AWP+EnSGD",
    "awp_2nd_ensgd": "AWP+2ndEnSGD",
}
# Kanai et al., Table 3: the columns missing from Table 1, in row order.
SECOND_ORDER = (
    {"at_2nd_ensgd": (48.93, 0.09), "awp_2nd_ensgd": (50.4, 0.3)},
    {"at_2nd_ensgd": (53.5, 0.2), "awp_2nd_ensgd": (54.9, 0.2)},
    {"at_2nd_ensgd": (59.3, 0.1), "awp_2nd_ensgd": (59.9, 0.1)},
    {"at_2nd_ensgd": (28.94, 0.05), "awp_2nd_ensgd": (30.7, 0.1)},
)
TABLE = Table(
    3,
    METHODS,
    tuple(
        row._replace(paper={**row.paper, **second})
        for row, second in zip(table1.TABLE.rows, SECOND_ORDER, strict=True)
    ),
)
