"""What is said about the programs compiled for an H100, on the committed results or on new ones."""

import copy
import json
import os
import pathlib

import jax
import pytest

from benchmarks.h100 import claims, hlo, programs, table

ROOT = pathlib.Path(__file__).parents[2]
RESULTS = pathlib.Path(
    os.environ.get("H100_RESULTS", ROOT / "benchmarks" / "results" / "h100.json")
)

MODULE = """HloModule jit_run, is_scheduled=true

%fused (a: f32[2,3]) -> f32[2,4] {
  %a = f32[2,3]{1,0} parameter(0)
  %b = f32[3,4]{1,0} constant({...})
  ROOT %dot.1 = f32[2,4]{1,0} dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

%inner (s: (s32[], f32[2,3])) -> (s32[], f32[2,3]) {
  %s = (s32[], /*index=1*/f32[2,3]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %v = f32[2,3]{1,0} get-tuple-element(%s), index=1
  %f = f32[2,4]{1,0} fusion(%v), kind=kLoop, calls=%fused
  %all-reduce-start = f32[2,4]{1,0} all-reduce-start(%f), replica_groups={{0,1}}, to_apply=%add
  %all-reduce-done = f32[2,4]{1,0} all-reduce-done(%all-reduce-start)
  ROOT %t = (s32[], f32[2,3]{1,0}) tuple(%i, %v)
}

%end (s.1: (s32[], f32[2,3])) -> pred[] {
  %s.1 = (s32[], f32[2,3]{1,0}) parameter(0)
  ROOT %p = pred[] constant(true)
}

ENTRY %main (d: u8[50,12], x.1: f32[2,3]) -> f32[2,3] {
  %d = u8[50,12]{1,0} parameter(0)
  %x.1 = f32[2,3]{1,0} parameter(1)
  %c = u8[50,12]{0,1} copy(%d)
  %cudnn = (f32[16,8,8,4]{3,2,1,0}, u8[0]{0}) custom-call(%i.1, %k), {CALL}
  %i.1 = f32[16,8,8,3]{3,2,1,0} constant({...})
  %k = f32[4,3,3,3]{3,2,1,0} constant({...})
  %zero = s32[] constant(0)
  %start = (s32[], f32[2,3]{1,0}) tuple(%zero, %x.1)
  %while = (s32[], f32[2,3]{1,0}) while(%start), condition=%end, body=%inner, {LOOP}
  ROOT %out = f32[2,3]{1,0} get-tuple-element(%while), index=1
}
"""
CALL = 'dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convForward"'
LOOP = 'backend_config={"known_trip_count":{"n":"7"}}'
MODULE = MODULE.replace("{CALL}", CALL).replace("{LOOP}", LOOP)


def test_loops_operations_and_bytes_are_read():
    found = hlo.read(MODULE, "[50,12]")
    assert found["data_set_copies"] == ["c"] and found["float64"] == 0 and not found["callbacks"]
    assert set(found["loops"]) == {"main", "main/7"}
    main, inner = found["loops"]["main"], found["loops"]["main/7"]
    assert main["operations"] == 2 and inner["operations"] == 3
    assert main["flops"] == 2 * (16 * 8 * 8 * 4) * 27  # a 3x3 convolution of 3 channels
    assert inner["flops"] == 2 * 8 * 3
    assert inner["bytes"] == (24 + 32) + (32 + 32) + (32 + 32)
    assert inner["collectives"] == {"all-reduce": {"number": 1, "bytes": 32}}


@pytest.fixture(scope="module")
def report():
    return json.loads(RESULTS.read_text(encoding="utf-8"))


def test_what_is_said_holds(report):
    assert {"at", "at_4", "wrn"} <= set(report["programs"])
    assert not claims.broken(report["programs"])


def _unroll(found):
    found["at"]["loops"]["main/n"] = found["at"]["loops"].pop("main/n/10")


def _gather(found):
    found["at_4"]["loops"]["main/n/10"]["collectives"]["all-gather"] = {"number": 1, "bytes": 8}


def _reduce_weights(found):
    found["at_4"]["loops"]["main/n/10"]["collectives"]["all-reduce"]["bytes"] = 45_000_000


def _reduce_often(found):
    found["at_4_local"]["loops"]["main/n"]["collectives"]["all-reduce"]["number"] = 30


def _share_statistics(found):
    found["at_4_local"]["loops"]["main/n/10"]["collectives"] = {
        "all-reduce": {"number": 68, "bytes": 4096}
    }


def _grow(found):
    found["tiny_at_20_steps"]["instructions"] *= 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_unroll, "at has no loop of 10 PGD steps"),
        (_gather, "at_4 communicates by"),
        (_reduce_weights, "a gradient of weights?"),
        (_reduce_often, "at_4_local reduces 30 times a minibatch"),
        (_share_statistics, "at_4_local has 68 all-reduces in a PGD step, not 0"),
        (_grow, "a loop is unrolled"),
        (lambda found: found["at"].update(data_set_copies=["copy.1"]), "copies the data set"),
        (lambda found: found["at"].update(float64=1), "float64"),
        (lambda found: found["wrn"]["memory"].update(temporaries=9e9), "more than"),
    ],
)
def test_each_statement_can_fail(report, change, message):
    programs = copy.deepcopy(report["programs"])
    change(programs)
    assert any(message in line for line in claims.broken(programs))


def test_the_table_names_every_program(report):
    text = table.markdown(report)
    names = [name for name in report["programs"] if not name.startswith("tiny")]
    assert len(names) > 5 and all(f"`{name}`" in text for name in names)
    assert "Computed" in text and all(f"`{name}`" in text for name in report["not_compiled"])


@pytest.mark.parametrize("what", ["at", "square"])
def test_programs_are_lowered_from_shapes(what):
    spec = programs.TINY._replace(what=what, devices=2)
    text = programs.lower(spec, jax.devices()).as_text()
    assert "tensor<50000x3072xui8>" in text if what == "at" else "tensor<2x512x" in text


@pytest.mark.slow
@pytest.mark.parametrize("what", ["awp", "trades", "entropy_sgd", "apgd-t", "fab-t"])
def test_more_programs_are_lowered_from_shapes(what):
    assert programs.lower(programs.TINY._replace(what=what), jax.devices()).as_text()


def test_the_page_quotes_the_all_reduces_of_the_record():
    programs = json.loads(RESULTS.read_text(encoding="utf-8"))["programs"]
    local, synced = (table.reductions(programs[name])[0] for name in ("at_4_local", "at_4"))
    page = " ".join((ROOT / "docs" / "scale.md").read_text(encoding="utf-8").split())
    assert f"has {local} all-reduces a minibatch instead of {synced}," in page
