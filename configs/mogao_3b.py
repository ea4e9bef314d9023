"""Mogao on Qwen2.5-1.5B: the size of the paper's ablations; encoders as in mogao_7b.py.

Size: 3,250,671,616 parameters in embedding, blocks and AdaLN, plus connectors and heads.
The architecture only: weights, data and a mesh belong to the recipes built on it.
Start: mogao port from-hf --config=configs/mogao_3b.py --llm QWEN2.5-1.5B --vit QWEN2-VL \
           --vae ae.safetensors --out CKPT
"""

from mogao_7b import get_config as mogao_7b


def get_config():
    c = mogao_7b()
    c.name = "mogao_3b"
    c.model.num_layers = 28
    c.model.embed_dim = 1536
    c.model.mlp_dim = 8960
    c.model.num_heads = 12
    return c
