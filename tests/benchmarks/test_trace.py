"""Where the time goes: kinds of operations from compiled programs and traces."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import _timing, _trace, summary

# As an error it aborts Python from within jaxlib's reader of traces (Python 3.13, jaxlib 0.12).
pytestmark = pytest.mark.filterwarnings("ignore:builtin type event_stats:DeprecationWarning")

HLO = """
%region (a: f32[], b: f32[]) -> f32[] {
  ROOT %s = f32[] add(%a, %b)
}

%fused (p: f32[4,4], q: f32[]) -> f32[4] {
  %p = f32[4,4]{1,0} parameter(0)
  %m = f32[4,4]{1,0} multiply(%p, %p)
  ROOT %r = f32[4]{0} reduce(%m, %q), dimensions={1}, to_apply=%region
}

%moved (p: f32[4,4]) -> f32[4,4] {
  %p = f32[4,4]{1,0} parameter(0)
  ROOT %t = f32[4,4]{0,1} transpose(%p), dimensions={1,0}
}

ENTRY %main (x: f32[4,4]) -> f32[4,4] {
  %squares = f32[4]{0} fusion(%x, %zero), kind=kLoop, calls=%fused
  %turned = f32[4,4]{1,0} fusion(%x), kind=kLoop, calls=%moved
  %c.1 = f32[1,4,4,2]{3,2,1,0} convolution(%x, %k), window={size=3x3}, dim_labels=b01f_01io->b01f
  %pair = (f32[2]{0}, f32[2]{0}) all-reduce(%u, %v), to_apply=%region
  %eig = (f32[4,4]{0,1}, f32[4]{0}) custom-call(%x), custom_call_target="lapack_ssyevd_ffi"
  ROOT %loop = (s32[], f32[4]{0}) while(%init), condition=%cond, body=%body
}
"""


def test_operations_are_told_apart_by_the_compiled_program():
    found = _trace.kinds_of(HLO)
    names = ("squares", "turned", "c.1", "pair", "eig")
    assert [found[name] for name in names] == [
        ("sums", False),
        ("copies", False),
        ("convolutions", True),
        ("exchange", False),
        ("factorizations", False),
    ]
    assert "loop" not in found  # its time is that of its operations


def test_a_trace_finds_what_takes_the_time():
    conv = jax.jit(
        lambda x, w: jax.lax.conv_general_dilated(
            x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
    )
    factor = jax.jit(lambda a: jnp.linalg.eigh(a).eigenvalues)
    x, w, a = jnp.ones((16, 32, 32, 8)), jnp.ones((3, 3, 8, 8)), jnp.eye(100)
    rivals = {
        "convolutions": lambda: conv(x, w).block_until_ready(),
        "factorizations": lambda: factor(a).block_until_ready(),
    }
    for kind, call in rivals.items():
        call()
        found = _trace.of_jax(call)
        assert max(found["kinds"], key=found["kinds"].__getitem__) == kind
        assert 0 < sum(found["kinds"].values())
        assert np.isclose(sum(found["programs"].values()), sum(found["kinds"].values()))


def test_programs_of_one_name_are_told_apart():
    """Their operations have the same names, too."""

    def compiled(function):
        def f(x):
            return function(x)

        return jax.jit(f)

    def conv(x):
        x, w = x.reshape(1, 64, 64, 32), jnp.ones((3, 3, 32, 32))
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=numbers)

    # Both are one operation, "ynn_fusion", of a program "jit_f".
    x = jnp.ones((512, 256))
    product, convolution = compiled(lambda x: x @ x.T), compiled(conv)
    for program in (product, convolution):
        program(x).block_until_ready()  # or it would still run when the first trace begins
    for program, kind in ((product, "matrix products"), (convolution, "convolutions")):
        found = _trace.of_jax(lambda program=program: program(x).block_until_ready())["kinds"]
        assert max(found, key=found.__getitem__) == kind


def test_operators_of_pytorch():
    names = ("aten::mkldnn_convolution", "aten::addmm", "aten::copy_", "aten::mul",
             "Torch-Compiled Region: 0/0", "Optimizer.step")  # fmt: skip
    assert [_trace._of_operator(name) for name in names] == [
        "convolutions", "matrix products", "copies", "elementwise", "elementwise", None,
    ]  # fmt: skip


def test_every_traced_call_has_a_row(tmp_path):
    environment = {"device": "a CPU", "date": "2026-01-01"}
    call = {"seconds": 2.0, "kinds": {"sums": 1.0, "copies": 3.0}, "programs": {"jit_f": 4.0}}
    options = {"width": 16, "batch_size": 8, "devices": 2, "channels_last": False}
    report = {"options": options | {"methods": ["at"]}, "environment": environment, "ratio": {}}
    report["profile"] = {"jaxadv, at": call, "pytorch, at": call}
    (tmp_path / "training_tiny.json").write_text(json.dumps(report))
    lines = summary.render(tmp_path)["profiles"].splitlines()
    assert lines[2:4] == [
        f"| training, width 16, batch 8, at | {side} | copies 75 %, sums 25 % "
        "| `training_tiny.json` |"
        for side in ("jaxadv", "pytorch")
    ]
    assert _timing.shares({"a": 0.0, "b": 1.0}) == "b 100 %"
