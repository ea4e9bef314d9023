"""A small model for documents of one's own: what `mogao train --data` starts from.

Size: 7 million parameters, with the tiny encoders of the package; images of up to 64x64 pixels.
The architecture only: data, tokenizer and packing budgets belong to what is built on it.
Start: mogao train --data FOLDER --workdir DIR
"""

from mogao_jax.config import default_config
from mogao_jax.worlds.shapes.recipes import tiny_vae, tiny_vit


def get_config():
    c = default_config()
    c.name = "small"
    c.images.max_pixels = 64 * 64
    c.images.max_side = 96
    c.images.vit_resize = "match_vae_grid"
    c.layout.text_positions = "t"  # as in configs/quickstart.py
    c.layout.noised_copies = 4

    c.model.num_layers = 6
    c.model.embed_dim = 192
    c.model.mlp_dim = 512
    c.model.num_heads = 4
    c.model.num_kv_heads = 2
    c.model.head_dim = 48
    c.model.rope_theta = 100.0
    c.model.tie_embeddings = False
    # A name is met once in a hundred steps: it has to move far, for its size, each time.
    c.model.embedding_init = 0.03
    c.model.velocity_head = "residual"
    c.model.attention.block_q = 32  # documents of some 100 tokens
    c.model.attention.block_kv = 32
    tiny_vae(c)
    tiny_vit(c)

    c.objective.ntp_weight = 0.3
    c.objective.shift = "none"
    c.objective.logit_mean = -0.8  # what an image shows is decided near the noise
    c.objective.logit_std = 1.2

    c.optimizer.learning_rate = 3e-3
    c.optimizer.warmup_steps = 50
    c.optimizer.weight_decay = 0.02
    c.optimizer.ema_decay = 0.99

    c.sampling.guidance_scale = 3.0  # the paper's 7.5 burns out a small model's colours

    c.train.num_steps = 100_000
    c.train.max_minutes = 10.0
    c.train.global_batch_rows = 2
    c.mesh.cpu_devices = 2
    c.train.checkpoint_every = 500
    return c
