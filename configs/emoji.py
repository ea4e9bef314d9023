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

from small import get_config as small

from mogao_jax.config import default_config, source

DOCUMENTS = "data/emoji"


def get_config():
    c = small()
    c.name = "emoji"
    # A BPE of these documents: 1.4 tokens a word, where bytes take 6.
    c.tokenizer.kind = "file"
    c.tokenizer.path = f"{DOCUMENTS}/tokenizer.json"
    c.images.max_side = 64  # every emoji is 64 x 64: 16 VAE tokens

    c.data.sources = {
        "captions": source(kind="documents", path=f"{DOCUMENTS}/captions.jsonl", weight=0.7),
        "names": source(kind="documents", path=f"{DOCUMENTS}/names.jsonl", weight=0.07),
        "edits": source(kind="documents", path=f"{DOCUMENTS}/edits.jsonl", weight=0.18),
        "series": source(kind="documents", path=f"{DOCUMENTS}/series.jsonl", weight=0.05),
    }
    c.data.validation_documents = 256
    # TAEF1 would be most of a step; every image always looks the same, so it is encoded once.
    c.data.encoded = f"{DOCUMENTS}/encoded"

    # `mogao data budgets --config=configs/emoji.py`. Rows are short: twice as many steps of half
    # the size learn names sooner.
    c.packing.und_tokens = 240
    c.packing.clean_tokens = 80
    c.packing.noised_tokens = 640
    c.packing.images = 13
    c.packing.vit_patches = 272

    # TAEF1 (Ollin Boer Bohan, MIT): a tiny autoencoder for FLUX.1's latents. Its latents are
    # already scaled for the model.
    c.vae = default_config().vae
    c.vae.kind = "taef1"
    c.vae.weights = "weights/taef1"

    c.optimizer.ema_decay = 0.999
    c.train.max_minutes = 145.0
    return c
