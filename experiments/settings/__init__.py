"""Run settings: their fields, defaults and validation.

A config file in ``experiments/configs`` defines the *method*. The tables in
:mod:`experiments.settings.recipes` define everything that depends on the data set or scale. A field
set by neither a config file nor the command line is ``None`` until :func:`resolve` fills it from
those tables; the resolved configuration is saved with every run.
"""

from .fields import Config as Config
from .fields import base as base
from .fields import flatten as flatten
from .fields import label as label
from .files import default_workdir as default_workdir
from .files import load_config as load_config
from .optimizers import OPTIMIZERS as OPTIMIZERS
from .recipes import DEFAULTS as DEFAULTS
from .recipes import NUM_FEATURES as NUM_FEATURES
from .recipes import SCALES as SCALES
from .recipes import THREATS as THREATS
from .resolve import resolve as resolve
from .validation import warm_epochs as warm_epochs
