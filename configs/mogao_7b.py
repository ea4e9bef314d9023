"""Mogao-7B: Qwen2.5-3B doubled by deep fusion, FLUX's VAE, Qwen2-VL's vision tower (the paper).

Size: 6,767,120,384 parameters in embedding, blocks and AdaLN, plus connectors and heads.
The architecture only: weights, data and a mesh belong to the recipes built on it.
"""

from mogao_jax.config import default_config


def get_config():
    c = default_config()
    c.name = "mogao_7b"
    c.tokenizer.kind = "file"  # Qwen2.5's: 151,665 tokens, in an embedding of 151,936 rows
    c.tokenizer.path = "tokenizers/qwen2.5"
    c.model.vocab_size = 151_936

    c.model.num_layers = 36
    c.model.embed_dim = 2048
    c.model.mlp_dim = 11008
    c.model.num_heads = 16
    c.model.num_kv_heads = 2
    c.model.head_dim = 128
    c.model.tie_embeddings = True
    c.model.scan_layers = True
    c.model.remat = "full"
    c.model.dtype = "bfloat16"

    c.vae.weights = "weights/flux/ae.safetensors"
    c.vit.weights = "weights/qwen2-vl-vit"
    c.sampling.top_p = 0.8  # with 0.7, Qwen2.5-Instruct's own (generation_config.json)
    return c
