"""Training runs: data, programs, training loop, checkpoints and report."""
