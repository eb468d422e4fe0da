"""Training curves, figure style, and the HTML page of a run."""
