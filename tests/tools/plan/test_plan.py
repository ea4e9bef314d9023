"""Plans of a tiny config: figures against what the program itself holds, and the flags."""

from __future__ import annotations

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest
import tiny_system as tiny

from mogao_jax.assembly import assemble
from mogao_jax.config.files import parse_config_args
from mogao_jax.config.schema import MeshConfig, SourceConfig, TrainConfig
from mogao_jax.errors import ConfigError, EnvironmentProblem
from mogao_jax.models.encoder_weights import vae_template, vit_template
from mogao_jax.models.vae import moments_of_images
from mogao_jax.sequence.document import Image
from mogao_jax.sharding.mesh import make_mesh
from mogao_jax.tools import flops
from mogao_jax.tools.plan import diagnostics, memory, roofline, search
from mogao_jax.tools.plan.collectives import Collective
from mogao_jax.tools.plan.mixture import made_up_document, packed_rows
from mogao_jax.tools.plan.plan import Compiled, check, make_plan, make_workload
from mogao_jax.tools.plan.printing import as_json, as_text
from mogao_jax.tools.plan.search import candidates
from mogao_jax.tools.plan.topology import parse
from mogao_jax.tools.profile import executed

GPUS = parse("8xH100")


def config(**mesh):
    rows = mesh.pop("rows", 8)
    sources = {
        "pairs": SourceConfig(kind="documents", path="nowhere", options={"task": "t2i"}),
        "questions": SourceConfig(
            kind="documents", path="nowhere", options={"task": "qa"}, flow_weight=0.0
        ),
    }
    base = tiny.config(
        data={"sources": sources}, packing={"und_tokens": 1024}, model={"vocab_size": 300}
    )
    return dataclasses.replace(
        base, mesh=MeshConfig(**mesh), train=TrainConfig(global_batch_rows=rows, num_steps=1000)
    )


@pytest.fixture(scope="module")
def known():
    return make_workload(config(fsdp=8), GPUS)


@pytest.fixture(scope="module")
def plan(known):
    return make_plan(config(data=1, fsdp=8), GPUS, known=known)


def test_state_per_chip_is_that_of_the_program(known):
    """Analytic bytes against the shards of what would really be handed to the step."""
    cfg = config(data=2, fsdp=4)
    mesh = make_mesh(cfg.mesh, jax.devices())
    assembly = assemble(cfg, known.vocab_size, mesh, load_weights=False)

    def held(tree):
        return sum(
            x.dtype.itemsize * int(np.prod(x.sharding.shard_shape(x.shape)))
            for x in jax.tree.leaves(tree)
        )

    found = memory.state_bytes(known.boxed, memory.abstract_mesh(cfg.mesh, 8))
    state = assembly.state
    assert found["parameters"] == held(state.params)
    assert found["moments"] == held(state.opt_state)
    assert found["moving average"] == held(state.ema_params)
    assert memory.batch_bytes(cfg, memory.abstract_mesh(cfg.mesh, 8)) == held(
        memory.abstract_batch(cfg, mesh)
    )
    assert memory.encoder_bytes(cfg) == sum(
        x.size * x.dtype.itemsize for x in jax.tree.leaves(assembly.encoders)
    )


def test_a_plan_adds_up(plan):
    assert plan.work.tokens > 0 and plan.origin.startswith("made-up")
    assert plan.work.clean == 0  # nothing of this mixture is read back
    assert sum(plan.executed_flops.values()) > flops.total(plan.model_flops)
    assert plan.compiled is None and plan.held == sum(plan.estimated.values())
    assert plan.mfu == pytest.approx(
        flops.total(plan.model_flops) / plan.roofline.step / (8 * 989e12)
    )
    assert plan.chip_hours(1e9) == pytest.approx(8 * 24 * plan.days(1e9))
    assert plan.days(plan.tokens_per_second * 86400) == pytest.approx(1.0)
    text = as_text(plan, 1e12)
    for words in ("8 x H100", "no compiler for GPUs", "noised tokens", "limited by", "Made up"):
        assert words in text
    record = json.loads(json.dumps(as_json(plan, 1e12)))
    assert record["estimate"]["step_seconds"] == plan.roofline.step
    assert record["executed_flops"]["und branch"] == plan.model_flops["und branch"]


def test_executed_flops_of_full_rows_and_no_remat_are_the_useful_ones_but_for_attention():
    cfg = config()
    p, rows = cfg.packing, 3
    work = flops.TokenCounts(
        und=rows * p.und_tokens, clean=rows * p.clean_tokens, noised=rows * p.noised_tokens,
        trained_text=100, vit_tokens=rows * p.vit_patches / 4, images=rows * (1 + p.images),
        pairs=1000, pairs_executed=1000, fill_und=1, fill_gen=1,
    )  # fmt: skip
    run = executed.executed_flops(cfg, 300, work, rows)
    useful = flops.model_flops(cfg, 300, work)
    assert run["padding of rows"] == 0 and run["recomputation (remat)"] == 0
    # Seven matmuls per pair are run, six are credited.
    tiles = run["attention: masked pairs of tiles, scores anew"]
    assert tiles == pytest.approx(useful["attention"] / 6)
    full = dataclasses.replace(cfg, model=dataclasses.replace(cfg.model, remat="full"))
    again = executed.executed_flops(full, 300, work, rows)["recomputation (remat)"]
    m = cfg.model
    branches = useful["und branch"] + useful["gen branch"] + useful["AdaLN and timesteps"]
    layer = flops.branch_weights(m) / m.num_layers
    share = (layer - m.embed_dim * m.mlp_dim) / layer
    assert again == pytest.approx(share * branches / 3 + useful["attention"] / 3)


def test_what_cannot_work_is_said_before_compiling(known):
    with pytest.raises(ConfigError, match=r"heads.*mesh\.tensor \(8\).*mesh\.tensor=4"):
        check(config(data=1, tensor=8), GPUS)
    with pytest.raises(ConfigError, match="use a multiple of 8, such as 8 or 16"):
        check(config(fsdp=8, data=1, rows=12), GPUS)
    with pytest.raises(ConfigError, match="set --num-slices 2, or --config.mesh.num_slices=1"):
        check(config(data=2, fsdp=32, num_slices=2, rows=64), parse("v5p:4x4x4"))
    with pytest.raises(ConfigError, match="fsdp.*data.*network between slices"):
        both = config(data=2, fsdp=64, num_slices=2, param_axes=("fsdp", "data"), rows=128)
        check(both, parse("v5p:4x4x4", 2))
    small = dataclasses.replace(GPUS, chip=dataclasses.replace(GPUS.chip, memory=2**14))
    with pytest.raises(ConfigError, match="the step cannot fit.*mesh.fsdp, up to 8"):
        make_plan(config(fsdp=8, data=1), small, known=known)


def test_what_training_would_refuse_is_not_planned():
    cfg, change = config(data=1, fsdp=8), dataclasses.replace
    sources = {name: change(s, weight=0.0) for name, s in cfg.data.sources.items()}
    nothing = change(cfg, data=change(cfg.data, sources=sources))
    moments = change(cfg, optimizer=change(cfg.optimizer, moments_dtype="bfloat16", b2=0.999))
    for plan in (make_plan, search.search):
        with pytest.raises(ConfigError, match="every weight is 0"):
            plan(nothing, GPUS)
        with pytest.raises(ConfigError, match="b2 is 0.999 with moments in bfloat16"):
            plan(moments, GPUS)


SMEM = """RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space \
smem. Used 1.04M of 1.00M smem. Exceeded smem capacity by 40.6K.

Program smem requirement 1.04M:
    scoped            1.04M
"""
VMEM = SMEM.replace("smem", "vmem")
HBM = SMEM.replace("smem", "hbm") + "vmem: 16M of it are scoped"


def test_the_remedy_is_for_the_memory_that_the_compiler_names():
    cfg = config()
    flag = functools.partial(diagnostics.out_of_memory, cfg)
    assert "larger config.mesh.context" in flag(SMEM)
    assert "smaller config.model.attention.block_q" in flag(VMEM)
    assert "smaller config" in flag("RESOURCE_EXHAUSTED: over the scoped vmem limit")
    for text in (HBM, "RESOURCE_EXHAUSTED: Out of memory"):
        assert flag(text).endswith(f". {diagnostics.memory_remedy(cfg)}")
    assert "smem capacity by 40.6K. That is a core's memory" in flag(SMEM)


def test_images_that_were_encoded_beforehand_are_planned_as_that(known, plan):
    plain = config(data=1, fsdp=8)
    cfg = dataclasses.replace(plain, data=dataclasses.replace(plain.data, encoded="nowhere"))
    row, before = memory.batch_row(cfg), memory.batch_row(plain)
    modules, i = known.modules, before.images

    def encoders(vae, vit, pixels, size, patches, positions, segment):
        moments = moments_of_images(modules.vae, vae, pixels, size, cfg.vae)
        return moments, modules.vit.apply({"params": vit}, patches, positions, segment)

    vit = jax.tree.map(lambda x: x[None], before.vit[:3])
    moments, features = jax.eval_shape(
        encoders, vae_template(cfg.vae), vit_template(cfg.vit), i.pixels, i.size, *vit
    )
    assert row.images.moments.shape == moments.shape and row.images.pixels.size == 0
    assert row.vit.features.shape == features.shape[1:] and row.vit.pixels.size == 0
    mesh = memory.abstract_mesh(cfg.mesh, 8)
    batch = memory.abstract_batch(cfg, make_mesh(cfg.mesh, jax.devices()))
    assert memory.batch_bytes(cfg, mesh) == sum(
        x.dtype.itemsize * int(np.prod(x.sharding.shard_shape(x.shape)))
        for x in jax.tree.leaves(batch)
    )
    assert plan.encoders["VAE"]["executed"] > 0
    assert make_workload(cfg, GPUS).encoders == {}


def test_a_search_leaves_out_what_the_compiler_finds_too_large(known, monkeypatch):
    cfg, slice_ = config(data=1, fsdp=8), parse("v5p:2x2x2")
    asked = []

    def compiler(fits):
        def make(candidate, topology, *, compile_it=True, **_):
            made = make_plan(candidate, topology, compile_it=False, known=known)
            if not compile_it:
                return made
            asked.append(candidate)
            if len(asked) == 1:
                raise EnvironmentProblem("not on this torus")
            if len(asked) not in fits:
                return dataclasses.replace(made, flags=["OUT OF MEMORY: too large"])
            peak = Compiled(1.0, 2.0**30, 0.0, 0.0, 0.0, 0.0, 0.0)
            return dataclasses.replace(made, compiled=peak)

        asked.clear()
        monkeypatch.setattr(search, "make_plan", make)
        monkeypatch.setattr(search, "make_workload", lambda *_: known)
        monkeypatch.setattr(search.topologies, "devices", lambda _: [])
        return search.search(cfg, slice_, compile_best=2)

    found = compiler(fits={3, 5})
    assert len(asked) == 5 and [bool(p.compiled) for _, p in found[:3]] == [True, True, False]
    left_out = [asked[i] for i in (0, 1, 3)]
    assert not any(candidate in left_out for candidate, _ in found)
    none = compiler(fits=())
    assert len(asked) == 2 * search.TRIES and not none[0][1].compiled
    assert not any(candidate in asked for candidate, _ in none)


def test_documents_that_are_made_up_follow_their_task():
    cfg, rng = config(), np.random.default_rng(0)

    def images(task, **fields):
        source = SourceConfig(kind="documents", options={"task": task}, **fields)
        items = made_up_document(source, cfg, rng).items
        return [x.loss for x in items if isinstance(x, Image)]

    assert images("text") == [] and images("qa") == [False] and images("t2i") == [True]
    assert images("edit") == [False, True]
    assert all(images("story")) and len(images("story")) >= 2
    assert images("", flow_weight=0.0) == [False]
    again = [packed_rows(cfg, 2).batch.und.meta.segment for _ in range(2)]
    assert (again[0] == again[1]).all() and again[0].shape == (2, 1024)


def test_rows_of_data_that_are_here_and_why_not_where_they_cannot_be_read(tmp_path):
    own, _ = parse_config_args(["--config=configs/quickstart.py"])
    rows = packed_rows(own, 2)
    assert rows.origin == "the config's own data"
    assert rows.batch.und.meta.segment.shape == (2, own.packing.und_tokens)
    assert rows.batch.images.size.any() and rows.batch.images.moments is None

    (tmp_path / "empty.jsonl").write_text("")
    sources = {"d": SourceConfig(kind="documents", path=str(tmp_path / "empty.jsonl"))}
    data = dataclasses.replace(own.data, sources=sources)
    assert "holds no documents" in packed_rows(dataclasses.replace(own, data=data), 1).origin


def test_rows_that_nothing_fits_are_refused():
    tight = tiny.config(packing={"und_tokens": 8}, data={"sources": config().data.sources})
    with pytest.raises(ConfigError, match="do not fit config.packing"):
        packed_rows(tight, 1)


def _collective(**fields):
    values = {
        "kind": "all-reduce", "shapes": (("bf16", (8, 1024, 32)),), "bytes": 2**21, "runs": 2,
        "axes": ("fsdp",), "group_size": 8, "where": "jit(train_step)/x",
    }  # fmt: skip
    return Collective(**values | fields)


def test_activations_on_the_move_are_flagged_and_weights_are_not():
    cfg, shape = config(), {"data": 1, "fsdp": 8, "tensor": 1, "context": 1}
    params = {
        "w": jax.ShapeDtypeStruct((2, 32, 1024), "float32"),  # a length that a weight has too
        "b": jax.ShapeDtypeStruct((32,), "float32"),
    }

    def found(**fields):
        return diagnostics.activation_collectives([_collective(**fields)], cfg, shape, params)

    assert found()
    assert found(shapes=(("f32", (1024, 32, 3)),), kind="all-to-all")
    assert not found(shapes=(("bf16", (32, 1024)),))  # the weight
    assert not found(shapes=(("bf16", (4, 1024)),))  # an eighth of it
    assert not found(axes=("tensor",))  # sums of activations are tensor parallelism
    assert not found(shapes=(("s32", (8, 1024, 3)),))
    assert not found(bytes=1000)
    assert not found(shapes=(("bf16", (7, 999, 32)),))


def test_sums_of_whole_weights_are_flagged_where_a_torus_has_two_axes(known):
    cfg = config(data=1, fsdp=8)
    mesh = memory.abstract_mesh(cfg.mesh, 8)
    weight = _collective(shapes=(("bf16", (7, 999)),))
    small = _collective(kind="all-gather", bytes=1000)

    def said(*found, two_axes=(2, 4)):
        return diagnostics.flags(cfg, mesh, known.boxed, 0, 1e9, 2e9, found, two_axes)

    (text,) = said(weight, small)
    for words in ("100% of the bytes", "data=2", "fsdp=4", "param_axes=fsdp,data"):
        assert words in text
    gather = _collective(kind="all-gather", shapes=weight.shapes)
    assert not said(gather) and not said(weight, gather, gather, gather)
    assert not said(weight, two_axes=None)  # GPUs: nothing to lay axes along


def test_flags_name_the_remedy(known):
    cfg = config(data=1, fsdp=8)
    mesh = memory.abstract_mesh(cfg.mesh, 8)
    said = diagnostics.flags(cfg, mesh, known.boxed, 2**31, 3e9, 2e9, [_collective()])
    text = " ".join(said)
    for words in ("OUT OF MEMORY", "remat='full'", "moments_dtype='bfloat16'", "1 collectives move",
                  "constrain", "mesh.encoders='sharded'"):  # fmt: skip
        assert words in text
    assert not diagnostics.flags(cfg, mesh, known.boxed, 0, 1e9, 2e9, [])
    big = {"a": jax.ShapeDtypeStruct((2**25,), "float32")}
    assert diagnostics.replicated_arrays(big, mesh) == [("['a']", 2**27)]


def test_the_roofline_by_hand():
    cfg = config(data=1, fsdp=8)
    run = {"und branch": 6e15, "attention": 1e15}
    sent = {"links": 72e9, "network": 0.0}
    found = roofline.roofline(cfg, GPUS, run, 0.0, sent, 8e9)
    assert found.compute == pytest.approx((6e15 / 0.75 + 1e15 / 0.45) / (8 * 989e12))
    assert found.links == pytest.approx(72e9 / (450e9 * 0.8))
    assert found.limit == "arithmetic"
    assert found.step == pytest.approx(found.compute + found.optimizer)
    assert roofline.roofline(cfg, GPUS, {}, 0.0, sent, 8e9).limit.startswith("links")
    cut = roofline.roofline(cfg, GPUS, run, 0.0, sent, 8e9, tensor=4)
    assert cut.memory == pytest.approx(found.memory / 4)  # each chip reads its part of a layer


def test_the_data_axis_goes_over_the_network_between_slices():
    sent = {("fsdp",): 10.0, ("data",): 3.0, ("tensor",): 1.0}
    shape = {"data": 2, "fsdp": 4, "tensor": 1, "context": 1}
    assert roofline.by_link(sent.items(), GPUS, shape) == {"links": 14.0, "network": 0.0}
    nodes = parse("64xH100")
    shape = {"data": 8, "fsdp": 8, "tensor": 1, "context": 1}
    assert roofline.by_link(sent.items(), nodes, shape) == {"links": 11.0, "network": 3.0}
    across = {"data": 1, "fsdp": 64, "tensor": 1, "context": 1}
    assert roofline.by_link([(("fsdp",), 10.0)], nodes, across) == {"links": 0.0, "network": 10.0}
    # What lies inside a node stays there, wherever another axis goes.
    inside = {"data": 1, "fsdp": 8, "tensor": 4, "context": 2}
    sent = {("tensor",): 100.0, ("context",): 30.0, ("fsdp",): 10.0, ("fsdp", "tensor"): 1.0}
    assert roofline.by_link(sent.items(), nodes, inside) == {"links": 130.0, "network": 11.0}
    beyond = {"data": 1, "fsdp": 4, "tensor": 4, "context": 4}
    assert roofline.by_link([(("tensor",), 1.0)], nodes, beyond)["network"] == 1.0


def _sent(cfg, vocab_size=300, **axes):
    shape = {"data": 1, "fsdp": 1, "tensor": 1, "context": 1} | axes
    return {k: x["sent"] for k, x in roofline.sent_by_formula(cfg, shape, vocab_size).items()}


def test_weights_cut_over_data_are_sent_over_data():
    cfg = config(data=2, fsdp=4, param_axes=("fsdp", "data"))
    sent = _sent(cfg, data=2, fsdp=4)
    assert sent == {"data+fsdp": _sent(config(fsdp=8), fsdp=8)["fsdp"]}
    slices = parse("v5p:2x2x1", 2)
    shape = {"data": 2, "fsdp": 4, "tensor": 1, "context": 1}
    assert roofline.by_link([(("data", "fsdp"), 5.0)], slices, shape)["network"] == 5.0


def test_weights_cut_over_context_are_sent_over_context():
    """As over so many devices of fsdp; what context sends otherwise, but for weights' gradients."""
    cfg = config(fsdp=2, context=4, param_axes=("fsdp", "context"))
    sent = _sent(cfg, fsdp=2, context=4)
    assert sent["fsdp+context"] == _sent(config(fsdp=8), fsdp=8)["fsdp"]
    m, p = cfg.model, cfg.packing
    kv = (p.und_tokens + p.clean_tokens + p.noised_tokens) * 8 / 2 * m.num_kv_heads * m.head_dim
    assert sent["context"] == pytest.approx(3 / 4 * 2 * kv * m.num_layers * 12)
    alone = _sent(dataclasses.replace(cfg, train=TrainConfig(global_batch_rows=1)), context=8)
    assert set(alone) == {"context"} and alone["context"] > sent["fsdp+context"]


def test_every_device_along_context_has_a_part_of_all_gradients():
    cfg = dataclasses.replace(config(), train=TrainConfig(global_batch_rows=8, grad_accum_steps=3))
    m, p = cfg.model, cfg.packing
    weights = 2 * flops.branch_weights(m) + 6 * m.num_layers * m.embed_dim**2 + 300 * m.embed_dim
    kv = (p.und_tokens + p.clean_tokens + p.noised_tokens) * 4 * 2 * m.num_kv_heads * m.head_dim
    assert _sent(cfg, fsdp=2, context=4)["context"] == pytest.approx(
        3 * (3 / 4 * kv * m.num_layers * 12 + 2 * 3 / 4 * 4 * weights / 2)
    )


def test_the_formulas_count_an_embedding_whose_size_the_tokenizer_gives(known):
    cfg, mesh = config(data=1, fsdp=8), memory.abstract_mesh(config(data=1, fsdp=8).mesh, 8)
    open_size = dataclasses.replace(cfg, model=dataclasses.replace(cfg.model, vocab_size=0))
    assert _sent(open_size, fsdp=8) == _sent(cfg, fsdp=8)
    more = _sent(cfg, 300 + 80, fsdp=8)["fsdp"] - _sent(cfg, 300, fsdp=8)["fsdp"]
    assert more == pytest.approx(7 / 8 * 80 * cfg.model.embed_dim * 12)
    a, b = (memory.estimate(x, known.boxed, mesh, 300) for x in (open_size, cfg))
    assert a == b


def test_on_a_torus_weights_lie_along_two_axes():
    assert parse("v5p:4x4x4").two_axes == (4, 16) and parse("v5e-256").two_axes == (16, 16)
    assert parse("v5p:2x2x1").two_axes == (2, 2) and parse("8xH100").two_axes is None
    cfg = dataclasses.replace(config(data=1, fsdp=8), train=TrainConfig(global_batch_rows=64))
    once = [c.mesh for c in candidates(cfg, parse("v5p:4x4x4")) if c.mesh.data * c.mesh.fsdp == 64]
    assert {(m.data, m.fsdp) for m in once if m.param_axes == ("fsdp", "data")} == {(4, 16)}
    assert all(m.data > 1 for m in once)  # in one step, over all of it, they are never gathered
    on_gpus = {(c.mesh.context > 1, c.mesh.param_axes) for c in candidates(cfg, GPUS)}
    assert on_gpus == {(False, ("fsdp",)), (True, ("fsdp", "context"))}


def test_a_state_that_is_held_by_all_who_share_a_row_is_flagged(known):
    def said(**sizes):
        cfg = config(**sizes)
        mesh = memory.abstract_mesh(cfg.mesh, 8)
        return diagnostics.flags(cfg, mesh, known.boxed, 0, 1e9, 2e9, [])

    (flag,) = said(data=1, fsdp=2, context=4)
    assert "4 chips that share a row" in flag and "param_axes=fsdp,context" in flag
    assert not said(data=1, fsdp=2, context=4, param_axes=("fsdp", "context"))


@pytest.mark.parametrize("machine", ["v5e-256", "v5p-64", "v5p-512", "v6e-64"])
def test_the_recipes_lay_weights_along_the_torus(machine):
    flag = f"--config=configs/mogao_7b_stage1.py:{machine}"
    mesh = parse_config_args([flag], checked=False)[0].mesh
    assert (mesh.data, mesh.fsdp) == parse(machine).two_axes
    assert mesh.param_axes == ("fsdp", "data")


def test_candidates_keep_the_batch_and_fill_the_machine():
    cfg = dataclasses.replace(
        config(data=1, fsdp=8), train=TrainConfig(global_batch_rows=8, grad_accum_steps=4)
    )
    found = list(candidates(cfg, GPUS))
    assert len(found) > 20
    for c in found:
        mesh = c.mesh
        assert mesh.data * mesh.fsdp * mesh.tensor * mesh.context == 8
        assert c.train.global_batch_rows % (mesh.data * mesh.fsdp) == 0
        assert c.train.global_batch_rows * c.train.grad_accum_steps == 32
        check(c, GPUS)
