"""Real images: captions, names and skin-tone edits of the Noto emoji, in TAEF1's latent space.

Data:  mogao data emoji --zip noto-emoji-64.zip --out data/emoji
       mogao data tokenizer --documents data/emoji --vocab 2048 --out data/emoji/tokenizer.json
       mogao data encode --config=configs/emoji.py --out data/emoji/encoded \
           --config.vae.weights=FOLDER_OF_TAEF1 --config.data.encoded=
Run:   mogao train --config=configs/emoji.py --workdir runs/emoji \
           --config.vae.weights=FOLDER_OF_TAEF1
       (documents elsewhere: --config.data.sources.captions.path=..., and so on)
Costs: 145 minutes on 2 CPU cores; other lengths: --config.train.max_minutes=... (45 teach
       the edits and half of the captions: docs/emoji.md)
Reach: of 96 each, the nearest image is the one asked for in 84% of skin-tone edits of emoji never
       seen and in 67% of training captions (docs/emoji.md)
"""

from mogao_jax.config import default_config, source
from mogao_jax.worlds.shapes.recipes import tiny_vit

DOCUMENTS = "data/emoji"


def get_config():
    c = default_config()
    c.name = "emoji"
    # A BPE of these documents: 1.4 tokens a word, where bytes take 6.
    c.tokenizer.kind = "file"
    c.tokenizer.path = f"{DOCUMENTS}/tokenizer.json"

    # Every emoji is 64 x 64: 16 VAE tokens; the ViT sees it on the same grid.
    c.images.max_pixels = 64 * 64
    c.images.max_side = 64
    c.images.vit_resize = "match_vae_grid"

    c.data.sources = {
        "captions": source(kind="documents", path=f"{DOCUMENTS}/captions.jsonl", weight=0.7),
        "names": source(kind="documents", path=f"{DOCUMENTS}/names.jsonl", weight=0.07),
        "edits": source(kind="documents", path=f"{DOCUMENTS}/edits.jsonl", weight=0.18),
        "series": source(kind="documents", path=f"{DOCUMENTS}/series.jsonl", weight=0.05),
    }
    c.data.validation_documents = 256
    # TAEF1 would be most of a step; every image always looks the same, so it is encoded once.
    c.data.encoded = f"{DOCUMENTS}/encoded"
    c.layout.text_positions = "t"  # as in configs/quickstart.py
    c.layout.noised_copies = 4

    # `mogao data budgets --config=configs/emoji.py`. Rows are short: twice as many steps of half
    # the size learn names sooner.
    c.packing.und_tokens = 240
    c.packing.clean_tokens = 80
    c.packing.noised_tokens = 640
    c.packing.images = 13
    c.packing.vit_patches = 272

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

    # TAEF1 (Ollin Boer Bohan, MIT): a tiny autoencoder for FLUX.1's latents. Its latents are
    # already scaled for the model.
    c.vae.kind = "taef1"
    c.vae.weights = "weights/taef1"
    tiny_vit(c)

    c.objective.ntp_weight = 0.3
    c.objective.shift = "none"
    c.objective.logit_mean = -0.8  # what an image shows is decided near the noise
    c.objective.logit_std = 1.2

    c.optimizer.learning_rate = 3e-3
    c.optimizer.warmup_steps = 50
    c.optimizer.weight_decay = 0.02
    c.optimizer.ema_decay = 0.999

    c.sampling.guidance_scale = 3.0  # the paper's 7.5 burns out a small model's colours

    c.train.num_steps = 100_000
    c.train.max_minutes = 145.0
    c.train.global_batch_rows = 2
    c.mesh.cpu_devices = 2
    c.train.checkpoint_every = 500
    return c
