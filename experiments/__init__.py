"""Experiments: everything that touches the outside - data, configs, runs, tables, figures."""
