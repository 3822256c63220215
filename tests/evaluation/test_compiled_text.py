"""Cycles, loops, kernels and collectives, read from texts as the TPU's compiler writes them."""

from collections import Counter

import jax
import jax.numpy as jnp
import pytest

from uam_jax.evaluation.chips import CHIPS
from uam_jax.evaluation.compiled_text import CompiledText, Costs, Kernel
from uam_jax.evaluation.tpu_programs import bytes_of, kernel_seconds, seconds_of


def cycles(count: int) -> str:
    return f'backend_config={{"window_config":{{"estimated_cycles":"{count}","is_mask":false}}}}'


def path(*parts: str) -> str:
    return f'metadata={{op_name="{"/".join(("jit(edit)", *parts))}" stack_frame_id=3}}'


TEXT = f"""HloModule jit_edit, is_scheduled=true

%conv (p0: bf16[2,8,8,16], p1: bf16[3,3,16,64]) -> bf16[2,8,8,64] {{
  %p0 = bf16[2,8,8,16]{{3,2,1,0:T(8,128)(2,1)S(1)}} parameter(0)
  %p1 = bf16[3,3,16,64]{{3,2,1,0:T(8,128)(2,1)}} parameter(1)
  ROOT %c = bf16[2,8,8,64]{{3,0,2,1:T(2,128)(2,1)}} convolution(%p0, %p1), window={{size=3x3 pad=1_1x1_1}}, {path("UNet", "conv_in", "conv_general_dilated")}
}}

%product (p0.1: bf16[8,64], p1.1: bf16[64,64]) -> bf16[8,64] {{
  %p0.1 = bf16[8,64]{{1,0}} parameter(0)
  %p1.1 = bf16[64,64]{{1,0}} parameter(1)
  ROOT %d = bf16[8,64]{{1,0}} convolution(%p0.1, %p1.1), dim_labels=bf_io->bf, {path("UNet", "to_out_0", "dot_general")}
}}

%inner (p0.2: f32[8,64]) -> f32[8] {{
  %p0.2 = f32[8,64]{{1,0}} parameter(0)
  %zero = f32[] constant(0)
  ROOT %r = f32[8]{{0}} reduce(%p0.2, %zero), dimensions={{1}}, to_apply=%sum
}}

%norm (p0.3: f32[8,64]) -> f32[8] {{
  %p0.3 = f32[8,64]{{1,0}} parameter(0)
  ROOT %f = f32[8]{{0}} fusion(%p0.3), kind=kLoop, calls=%inner, {cycles(999)}
}}

%turn (p0.4: bf16[8,64]) -> bf16[64,8] {{
  %p0.4 = bf16[8,64]{{1,0}} parameter(0)
  ROOT %t = bf16[64,8]{{1,0}} transpose(%p0.4), dimensions={{1,0}}
}}

%add (p0.5: bf16[8,64], p1.5: bf16[8,64]) -> bf16[8,64] {{
  %p0.5 = bf16[8,64]{{1,0}} parameter(0)
  %p1.5 = bf16[8,64]{{1,0}} parameter(1)
  ROOT %a = bf16[8,64]{{1,0}} add(%p0.5, %p1.5)
}}

%chunks.body (s: (s32[], bf16[8,64])) -> (s32[], bf16[8,64]) {{
  %s = (s32[], bf16[8,64]{{1,0}}) parameter(0)
  %i = s32[]{{:T(128)}} get-tuple-element(%s), index=0
  %x = bf16[8,64]{{1,0}} get-tuple-element(%s), index=1
  %two = s32[]{{:T(128)}} constant(2)
  %y = bf16[8,64]{{1,0}} fusion(%x, %x), kind=kLoop, calls=%add, {path("while", "body", "jit(_attend)", "exp")}, {cycles(7)}
  %j = s32[]{{:T(128)}} add(%i, %two)
  ROOT %next = (s32[], bf16[8,64]{{1,0}}) tuple(%j, %y)
}}

%chunks.test (s.1: (s32[], bf16[8,64])) -> pred[] {{
  %s.1 = (s32[], bf16[8,64]{{1,0}}) parameter(0)
  %i.1 = s32[]{{:T(128)}} get-tuple-element(%s.1), index=0
  %ten = s32[]{{:T(128)}} constant(10)
  ROOT %less = pred[] compare(%i.1, %ten), direction=LT
}}

%steps.body (s.2: (bf16[8,64], s32[], s32[])) -> (bf16[8,64], s32[], s32[]) {{
  %s.2 = (bf16[8,64]{{1,0}}, s32[], s32[]) parameter(0)
  %x.2 = bf16[8,64]{{1,0}} get-tuple-element(%s.2), index=0
  %i.2 = s32[]{{:T(128)}} get-tuple-element(%s.2), index=1
  %n.2 = s32[]{{:T(128)}} get-tuple-element(%s.2), index=2
  %nought = s32[]{{:T(128)}} constant(0)
  %one = s32[]{{:T(128)}} constant(1)
  %y.2 = bf16[8,64]{{1,0}} fusion(%x.2, %x.2), kind=kOutput, calls=%product, {path("while", "body", "UNet", "add")}, {cycles(1000)}
  %given.2 = (s32[], bf16[8,64]{{1,0}}) tuple(%nought, %y.2)
  %done.2 = (s32[], bf16[8,64]{{1,0}}) while(%given.2), condition=%chunks.test, body=%chunks.body
  %z.2 = bf16[8,64]{{1,0}} get-tuple-element(%done.2), index=1
  %j.2 = s32[]{{:T(128)}} add(%one, %i.2)
  ROOT %next.2 = (bf16[8,64]{{1,0}}, s32[], s32[]) tuple(%z.2, /*index=1*/%j.2, %n.2)
}}

%steps.test (s.3: (bf16[8,64], s32[], s32[])) -> pred[] {{
  %s.3 = (bf16[8,64]{{1,0}}, s32[], s32[]) parameter(0)
  %i.3 = s32[]{{:T(128)}} get-tuple-element(%s.3), index=1
  %n.3 = s32[]{{:T(128)}} get-tuple-element(%s.3), index=2
  ROOT %less.3 = pred[] compare(%i.3, %n.3), direction=LT
}}

ENTRY %main_spmd (w: bf16[3,3,16,64], w2: f32[4], x.9: bf16[2,8,8,16]) -> bf16[8,64] {{
  %w = bf16[3,3,16,64]{{3,2,1,0}} parameter(0), sharding={{replicated}}, metadata={{op_name="arrays[0][\\'unet\\'][\\'conv_in\\'][\\'kernel\\']"}}
  %w2 = f32[4]{{0}} parameter(1), metadata={{op_name="arrays[0][\\'vae\\'][\\'scale\\']"}}
  %x.9 = bf16[2,8,8,16]{{3,2,1,0}} parameter(2), metadata={{op_name="arrays[1]"}}
  %start = (bf16[3,3,16,64]{{3,2,1,0:S(1)}}, bf16[3,3,16,64]{{3,2,1,0}}, u32[]{{:S(2)}}) copy-start(%w)
  %here = bf16[3,3,16,64]{{3,2,1,0:S(1)}} copy-done(%start)
  %first = bf16[2,8,8,64]{{3,0,2,1}} fusion(%x.9, %here), kind=kOutput, calls=%conv, {path("UNet", "conv_in", "conv_general_dilated")}, {cycles(20)}
  %flat = bf16[8,64]{{1,0}} bitcast(%first)
  %mean = f32[8]{{0}} fusion(%flat), kind=kLoop, calls=%norm, {path("UNet", "norm1", "sub")}, {cycles(5)}
  %turned = bf16[64,8]{{1,0}} fusion(%flat), kind=kLoop, calls=%turn, {cycles(3)}
  %zero.9 = s32[]{{:T(128)}} constant(0)
  %fifty = s32[]{{:T(128)}} constant(50)
  %counter = s32[]{{:T(128)}} copy(%zero.9)
  %given = (bf16[8,64]{{1,0}}, s32[], s32[]) tuple(%flat, %counter, %fifty)
  %loop = (bf16[8,64]{{1,0}}, /*index=1*/s32[], s32[]) while(%given), condition=%steps.test, body=%steps.body
  %out = bf16[8,64]{{1,0}} get-tuple-element(%loop), index=0
  %attended = bf16[2,8,4096,40]{{3,2,1,0}} custom-call(%q, %q, %q), custom_call_target="tpu_custom_call", {path("jit(_attend)", "pallas_call")}
  %bound = s32[8]{{0}} custom-call(%counter), custom_call_target="AssumeGatherIndicesInBound"
  %q = bf16[2,8,4096,40]{{3,2,1,0}} parameter(3)
  ROOT %all = bf16[8,64]{{1,0}} all-reduce(%out), to_apply=%sum
}}
"""  # noqa: E501


@pytest.fixture(scope="module")
def costs() -> Costs:
    return CompiledText(TEXT).costs()


def test_cycles_are_counted_by_kind_with_the_turns_of_every_loop(costs: Costs) -> None:
    # The inner loop counts 0, 2, ..., 8; the outer one's end is part of its state.
    assert costs.cycles == {
        "convolution": 20,
        "norms and reductions": 5,
        "copies": 3,
        "products": 50 * 1000,
        "attention": 50 * 5 * 7,
    }
    assert costs.unknown_loops == 0


def test_exchanges_and_kernels_are_found(costs: Costs) -> None:
    assert costs.collectives == {"all-reduce": 1}
    shape = ("bf16", (2, 8, 4096, 40))
    assert costs.kernels == {
        Kernel("jit(edit)/jit(_attend)/pallas_call", (shape,) * 3, (shape,)): 1
    }


def test_a_stated_number_of_turns_counts() -> None:
    loop = "while(%given), condition=%steps.test, body=%steps.body"
    known = TEXT.replace(loop, f'{loop}, backend_config={{"known_trip_count":{{"n":"7"}}}}')
    assert CompiledText(known).costs().cycles["products"] == 7 * 1000


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("tuple(%flat, %counter, %fifty)", "tuple(%flat, %counter, %mean)"),
        ("add(%one, %i.2)", "multiply(%one, %i.2)"),
        ("compare(%i.3, %n.3), direction=LT", "compare(%i.3, %n.3), direction=NE"),
    ],
)
def test_a_loop_of_unknown_length_is_told(old: str, new: str) -> None:
    assert old in TEXT
    costs = CompiledText(TEXT.replace(old, new)).costs()
    assert costs.unknown_loops == 1 and costs.cycles["products"] == 1000


def test_the_weights_are_known_by_their_path() -> None:
    assert CompiledText(TEXT).parameters("arrays[0][\\'") == [
        ("bf16", (3, 3, 16, 64)),
        ("f32", (4,)),
    ]


def test_a_text_of_this_machines_compiler_has_loops_and_no_cycles() -> None:
    def run(x: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, 7, lambda i, y: jnp.tanh(y @ x), x)

    costs = CompiledText(jax.jit(run).lower(jnp.ones((8, 8))).compile().as_text()).costs()
    assert costs == Costs()


def kernel(queries: int, keys: int, width: int) -> dict[str, object]:
    q, k = (("bf16", (3, 8, length, width)) for length in (queries, keys))
    return {"operands": [q, k, k], "results": [q], "runs": 10}


def test_a_kernel_of_attention_is_reckoned_from_its_shapes() -> None:
    chip = CHIPS["v5e"]
    logits = 3 * 8 * 4096 * 4096
    products = 4 * logits * 128 / 197e12
    softmax = 4.5 * logits / (8 * 128 * 4 * 197e12 / (2 * 4 * 128**2))
    assert kernel_seconds(kernel(4096, 4096, 40), chip, "bfloat16") == pytest.approx(
        products + softmax
    )
    # A head of 129 takes two times 128 lanes.
    assert kernel_seconds(kernel(4096, 4096, 129), chip, "bfloat16") == pytest.approx(
        2 * products + softmax
    )
    # With few keys the bytes decide: queries and result, on 128 lanes of 2 bytes.
    few = kernel_seconds(kernel(4096, 8, 40), chip, "bfloat16")
    assert few == pytest.approx(2 * 3 * 8 * (4096 + 8) * 128 * 2 / 819e9)


def test_seconds_and_bytes_of_a_program() -> None:
    outcome = {
        "cycles": {"products": 3_000_000, "copies": 0},
        "kernels": [kernel(64, 64, 40)],
        "bytes": {
            "argument": 500, "weights": 400, "output": 70, "alias": 60, "temporary": 1000, "code": 5,
        },
    }  # fmt: skip
    seconds = seconds_of(outcome, CHIPS["v5e"], "bfloat16")
    assert seconds["products"] == pytest.approx(2e-3, rel=3e-3)  # at 1.5 GHz
    one = kernel_seconds(kernel(64, 64, 40), CHIPS["v5e"], "bfloat16")
    assert seconds["attention"] == pytest.approx(10 * one)
    assert set(seconds) == {"products", "attention"}
    assert bytes_of(outcome) == 500 - 400 + 70 - 60 + 1000 + 5


def test_costs_add_up() -> None:
    total = Costs()
    total.add(Costs(Counter(copies=2), unknown_loops=1), 3)
    total.add(Costs(Counter(copies=1), collectives=Counter({"all-gather": 1})), 2)
    assert total == Costs(Counter(copies=8), Counter(), Counter({"all-gather": 2}), 1)
