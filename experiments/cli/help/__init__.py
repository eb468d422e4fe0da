"""``--help`` at once, and its texts."""
