"""A small Mogao from nothing, on the embedded world of shapes.

Costs: 8 minutes on 2 CPU cores, about 2 GiB of memory.
Reach: 38% of images right, 40% of answers (chance 30%); see README.
Run:   mogao train --config=configs/quickstart.py --workdir runs/quickstart
       mogao report --workdir runs/quickstart
"""

from mogao_jax.config import default_config
from mogao_jax.worlds.shapes.recipes import about, mixture, tiny_vae, tiny_vit


def get_config():
    c = default_config()
    c.name = "quickstart"
    c.about = about("primer")
    c.tokenizer.kind = "shapes"  # a BPE of 768 tokens made for this world

    # Images of up to 64 x 48 pixels: at most 12 VAE tokens each.
    c.images.max_pixels = 64 * 48
    c.images.max_side = 64
    c.images.vit_resize = "match_vae_grid"

    # Mostly images from captions, which take longest to learn: the paper's first stage (4:1),
    # with some of its third (edits, stories, clips) from the start.
    weights = {
        "text": 0.01,
        "qa": 0.09,
        "describe": 0.04,
        # More of what is learned last: two things, on the right sides of each other.
        "t2i": 0.32,
        "t2i_counting": 0.10,
        "t2i_position": 0.20,
        "t2i_color_attribution": 0.10,
        "edit": 0.08,
        "story": 0.04,
        "clip": 0.02,
    }
    c.data.sources = mixture(
        weights,
        # Every object inside one VAE token, and few words: minutes teach how many, which color of
        # which thing, and where, not how to join parts, nor ten more names.
        world="primer",
        # An answer is a word or two: it would drown in the stories' many tokens.
        ntp_weights={"qa": 4.0},
    )
    # Four noised copies of every image to generate: its history is read once for all.
    c.layout.noised_copies = 4
    # So that it ends by itself after an image that was asked for.
    c.layout.end_after_image = "sometimes"
    # Text at H = W = 0: how far an image's token is from any word is where in the image it is,
    # however long the text. From scratch there is no pretrained 1-D RoPE to keep.
    c.layout.text_positions = "t"

    # In proportion to this mixture (`mogao data budgets`); `mogao data fill` says how full.
    c.packing.und_tokens = 544
    c.packing.clean_tokens = 60
    c.packing.noised_tokens = 748
    c.packing.images = 22
    c.packing.vit_patches = 480

    # Small, because eight minutes are few tokens: four times the size learns less in that time.
    c.model.num_layers = 4
    c.model.embed_dim = 128
    c.model.mlp_dim = 384
    c.model.num_heads = 4
    c.model.num_kv_heads = 2
    c.model.head_dim = 32
    # Documents of 200 tokens and grids of 4 x 4: wavelengths up to some hundreds, not a million.
    c.model.rope_theta = 100.0
    c.model.tie_embeddings = False
    c.model.embedding_init = 0.5
    c.model.velocity_head = "residual"
    c.model.attention.block_q = 32  # documents of some 50 tokens: small blocks waste less
    c.model.attention.block_kv = 32

    tiny_vae(c)
    tiny_vit(c)

    c.objective.ntp_weight = 0.3
    c.objective.shift = "none"
    # What an image shows is decided near the noise: its objects are large and plain.
    c.objective.logit_mean = -1.5
    c.objective.logit_std = 1.2

    c.optimizer.learning_rate = 2.5e-3
    c.optimizer.warmup_steps = 50
    c.optimizer.weight_decay = 0.02
    c.optimizer.ema_decay = 0.99

    c.train.num_steps = 100_000
    c.train.max_minutes = 8.0
    c.train.global_batch_rows = 2
    c.mesh.cpu_devices = 2
    c.train.checkpoint_every = 500

    # A small model's condition is a weak signal: the paper's 7.5 would distort its images.
    c.sampling.guidance_scale = 2.0
    return c
