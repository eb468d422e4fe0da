"""One run: from its settings to data, programs, training loop, checkpoints and report."""
