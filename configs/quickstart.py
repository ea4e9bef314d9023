"""A small Mogao on the embedded world of shapes: the first thing to run.

Costs: 8 minutes on 2 CPU cores, about 2 GiB of memory.
Reach: see README (`bash launch/quickstart.sh`).
Run:   mogao train --config=configs/quickstart.py --workdir runs/quickstart
       mogao report --workdir runs/quickstart
"""

from mogao_jax.config.convert import default_config, source


def captions(weights):
    """Sources of captions with their pictures: of a category ("": of any), its weight."""
    return {
        "_".join(("t2i", category)).strip("_"): source(
            kind="shapes", task="t2i", category=category, weight=weight
        )
        for category, weight in weights.items()
    }


def get_config():
    c = default_config()
    c.name = "quickstart"
    c.tokenizer.kind = "shapes"  # a BPE of 768 tokens made for this world

    # Pictures of up to 64 x 48 pixels: at most 12 VAE tokens each.
    c.images.max_pixels = 64 * 48
    c.images.max_side = 64
    c.images.vit_resize = "match_vae_grid"

    # Every object inside one VAE token, and few words: minutes teach how many, which color of
    # which thing, and where, not how to join parts, nor ten more names.
    c.data.world = "primer"
    # Mostly pictures from captions, which take longest to learn: the paper's first stage (4:1),
    # with some of its third (edits, stories, clips) from the start.
    c.data.sources = {
        "text": source(kind="shapes", task="text", weight=0.01),
        # An answer is a word or two: it would drown in the stories' many tokens.
        "qa": source(kind="shapes", task="qa", weight=0.09, ntp_weight=4.0),
        "describe": source(kind="shapes", task="describe", weight=0.04),
        # More of what is learned last: two things, on the right sides of each other.
        **captions({"": 0.32, "counting": 0.10, "position": 0.20, "color_attribution": 0.10}),
        "edit": source(kind="shapes", task="edit", weight=0.08),
        "story": source(kind="shapes", task="story", weight=0.04),
        "clip": source(kind="shapes", task="clip", weight=0.02),
    }
    # Four noised copies of every picture to draw: its history is read once for all.
    c.layout.noised_copies = 4
    # So that it ends by itself after a picture that was asked for.
    c.layout.end_after_image = "sometimes"
    # Text at H = W = 0: how far a picture's token is from any word is where in the picture it is,
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

    # Tiny frozen encoders that ship with the package.
    c.vae.weights = "embedded"
    c.vae.block_channels = (8, 16, 32, 64)
    c.vae.layers_per_block = 1
    c.vae.norm_groups = 4
    c.vae.scaling_factor = 1.5948
    c.vae.shift_factor = 0.0201
    c.vae.sample_posterior = False
    c.vit.weights = "embedded"
    c.vit.depth = 4
    c.vit.embed_dim = 96
    c.vit.num_heads = 4
    c.vit.mlp_dim = 384

    c.objective.ntp_weight = 0.3
    c.objective.shift = "none"
    # What a picture shows is decided near the noise: its objects are large and plain.
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

    # A small model's condition is a weak signal: the paper's 7.5 would distort its pictures.
    c.sampling.guidance_scale = 2.0
    return c
