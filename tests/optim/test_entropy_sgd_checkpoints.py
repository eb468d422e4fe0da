"""States of EntropySGD that earlier versions saved load, and the run goes on as it would have."""

import pathlib

import jax
import numpy as np
import pytest
from flax import serialization

from experiments.run import checkpoints
from tests.helpers import entropy_checkpoints

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "entropy_sgd_states.npz"


@pytest.mark.parametrize("name", entropy_checkpoints.RUNS)
def test_a_saved_state_goes_on(name):
    tx, params = entropy_checkpoints.optimizer(name), entropy_checkpoints.PARAMS
    template = jax.eval_shape(lambda: {"params": params, "opt_state": tx.init(params)})
    with np.load(GOLDEN) as golden:
        stored = serialization.msgpack_restore(golden[f"{name}/saved"].tobytes())
        expected = golden[f"{name}/end"]
    state = checkpoints.restore(GOLDEN, stored, template)
    calls = range(entropy_checkpoints.SAVED, entropy_checkpoints.CALLS)
    params, _ = entropy_checkpoints.train(name, tx, state["params"], state["opt_state"], calls)
    np.testing.assert_allclose(params["kernel"], expected, rtol=1e-6)
    assert np.min(np.abs(expected - state["params"]["kernel"])) > 1e-4
