"""transformers' and diffusers' folders -> a checkpoint of ours -> folders that they load again.

Needs torch, transformers and diffusers. (Round trips without them: the other tests of to-hf.)
"""

from __future__ import annotations

import dataclasses

import llm_reference as reference
import pytest
import tiny_system as tiny

from mogao_jax.config.schema import VaeConfig, VitConfig
from mogao_jax.porting.streaming import stream_checkpoint
from mogao_jax.porting.to_hf import export

VAE = VaeConfig(block_channels=(4, 8, 8, 12), layers_per_block=1, norm_groups=2)
VIT = VitConfig(depth=2, embed_dim=32, num_heads=2, mlp_dim=128)
PARTS = ["llm", "vit", "vae"]
MERGED = 24  # width of the tower's own merger, which ours leaves aside


def _models(config, dtype):
    """The three parts with random weights of a dtype."""
    import diffusers
    import torch
    from transformers.models.qwen2_vl import modeling_qwen2_vl as lib
    from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLVisionConfig

    llm = reference.make_reference(config.model)
    vit = lib.Qwen2VisionTransformerPretrainedModel._from_config(
        Qwen2VLVisionConfig(depth=VIT.depth, embed_dim=VIT.embed_dim, hidden_size=MERGED,
                            num_heads=VIT.num_heads, mlp_ratio=4)
    )  # fmt: skip
    vae = diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=VAE.block_channels, layers_per_block=VAE.layers_per_block,
        latent_channels=16, norm_num_groups=VAE.norm_groups, use_quant_conv=False,
        use_post_quant_conv=False, scaling_factor=VAE.scaling_factor,
        shift_factor=VAE.shift_factor,
    )  # fmt: skip
    torch.manual_seed(1)
    for model in (vit, vae):
        with torch.no_grad():
            for p in model.parameters():
                p.copy_(torch.randn_like(p))
    return {"llm": llm.to(dtype), "vit": vit.to(dtype), "vae": vae.to(dtype)}


@pytest.fixture(scope="module", params=["tied, bfloat16", "untied, float32"])
def ported(request, tmp_path_factory):
    """(what it is, their models by part, our checkpoint made of their folders)."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    pytest.importorskip("diffusers")
    tied, folder = request.param.startswith("tied"), tmp_path_factory.mktemp("ported")
    fields = {"num_heads": 4, "head_dim": 8, "vocab_size": tiny.TOKENIZER.vocab_size,
              "tie_embeddings": tied, "scan_layers": tied}  # fmt: skip
    config = dataclasses.replace(tiny.config(model=fields), vae=VAE, vit=VIT)
    theirs = _models(config, torch.bfloat16 if tied else torch.float32)
    for part, model in theirs.items():
        model.save_pretrained(str(folder / part), max_shard_size="20KB")
    assert len(list((folder / "llm").glob("*.safetensors"))) > 1  # in shards
    places = {part: folder / part for part in theirs}
    return request.param, theirs, stream_checkpoint(folder / "checkpoint", config, **places).path


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
def test_they_load_what_went_through_us(part, ported, tmp_path, measured):
    import torch

    name, theirs, checkpoint = ported
    export(checkpoint, tmp_path / part, part=part)
    dtype = theirs[part].dtype if part == "vae" else "auto"  # diffusers knows no "auto"
    again = type(theirs[part]).from_pretrained(str(tmp_path / part), torch_dtype=dtype)
    ours, wanted = again.state_dict(), theirs[part].state_dict()
    assert set(ours) == set(wanted)
    differing = [
        k for k, v in wanted.items() if ours[k].dtype != v.dtype or not torch.equal(ours[k], v)
    ]
    measured("round trip from-hf, to-hf", name, f"tensors that differ: {part} ({len(wanted)})",
             len(differing), 0)  # fmt: skip
