"""The Square Attack."""

from .attack import square as square
