"""Mogao on Qwen2.5-0.5B, the smallest of its family; encoders as in mogao_7b.py.

Size: 967,663,616 parameters in embedding, blocks and AdaLN, plus connectors and heads.
The architecture only: weights, data and a mesh belong to the recipes built on it.
Start: mogao port from-hf --config=configs/mogao_1b.py --llm QWEN2.5-0.5B --vit QWEN2-VL \
           --vae ae.safetensors --out CKPT
"""

from mogao_7b import get_config as mogao_7b


def get_config():
    c = mogao_7b()
    c.name = "mogao_1b"
    c.model.num_layers = 24
    c.model.embed_dim = 896
    c.model.mlp_dim = 4864
    c.model.num_heads = 14
    c.model.head_dim = 64
    return c
