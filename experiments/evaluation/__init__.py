"""A checkpoint or published weights, judged by PGD or AutoAttack."""
