"""Independent implementations that results are compared with."""
