"""A few steps of every public attack: one line puts an attack through the tests of all of them."""

SMALL = {
    "pgd": dict(step_size=0.05, num_steps=4, num_restarts=2),
    "fgsm": dict(init="uniform"),
    "apgd": dict(num_steps=10, num_restarts=2),
    "apgd_targeted": dict(num_steps=4, num_targets=2),
    "fab": dict(num_steps=4),
    "fab_targeted": dict(num_steps=3, num_targets=2),
    "square": dict(num_queries=30),
}
