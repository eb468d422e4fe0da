"""Data sets as verified arrays in memory, or as images in files that are read by row (`Rows`).

`load` reads local files and never downloads; `ensure` and `python -m experiments.data NAME`
download what is missing. Images are uint8 NHWC, labels int32.
"""

from ._archives import extract as extract
from ._checks import check_images as check_images
from ._checks import check_labels as check_labels
from ._dataset import DataError as DataError
from ._dataset import DataMissingError as DataMissingError
from ._dataset import Dataset as Dataset
from ._dataset import Split as Split
from ._dataset import split as split
from ._fetch import ensure as ensure
from ._registry import NAMES as NAMES
from ._registry import load as load
from ._robustbench import robustbench_images as robustbench_images
from ._rows import Rows as Rows
from ._rows import central as central
from ._rows import take as take
