"""Evaluation of a checkpoint or published weights with PGD or AutoAttack."""
