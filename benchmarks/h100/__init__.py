"""Programs compiled for an H100 on a machine that has none, and what can be read from them."""
