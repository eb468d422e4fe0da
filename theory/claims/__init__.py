"""The statements of the paper and their corrections, checked by computing."""
