"""The checkpoint that ships with the package: the quickstart's recipe, larger, in nine stages.

Each stage starts from the weights of the one before, with a mixture that practises what is
learned last. Stages differ in the table below and in nothing else.

Costs: 364 minutes on 2 CPU cores for all stages (`minutes` of each below), about 2 GiB of memory.
Reach: see README (the table of the demo checkpoint).
Run:   bash launch/demo.sh           (all stages, then the export), or one stage:
       mogao train --config=configs/demo.py:stage=1 --workdir runs/demo
       mogao train --config=configs/demo.py:stage=2 --workdir runs/demo_stage2
       (without `:stage=` it is the first)
"""

from typing import NamedTuple

from quickstart import get_config as quickstart

from mogao_jax.errors import ConfigError
from mogao_jax.worlds.shapes.recipes import mixture


class Stage(NamedTuple):
    minutes: float
    # Per row: und, clean and noised tokens, images, ViT patches; in proportion to the mixture
    # (`mogao data budgets`).
    packing: tuple[int, int, int, int, int]
    learning_rate: float
    sources: dict[str, float]  # TASK or TASK_CATEGORY: share in the mixture


# fmt: off
STAGES = (
    # 1: Half of the captions are of the three categories that are learned last. Answers of a word
    # are a thin signal; descriptions teach the same with thirty words an image. At a rate of 3e-3
    # images learn as fast, but text never learns to look at an image's colors.
    Stage(62.0, (640, 64, 608, 19, 560), 1e-3, {
        "t2i": 0.18, "t2i_counting": 0.07, "t2i_position": 0.13, "t2i_color_attribution": 0.09,
        "qa": 0.19, "describe": 0.14,
        "edit": 0.14, "story": 0.07, "clip": 0.04, "text": 0.03}),
    # 2: More of what is learned last: counting and places in captions; questions, and statements
    # that ask in every direction.
    Stage(80.0, (640, 64, 608, 19, 560), 1e-3, {
        "t2i": 0.14, "t2i_counting": 0.15, "t2i_position": 0.13, "t2i_color_attribution": 0.06,
        "qa": 0.16, "state": 0.10, "describe": 0.04,
        "edit": 0.14, "story": 0.05, "clip": 0.02, "text": 0.01}),
    # 3: Questions, while what was learned is kept up. Whose color, where, on which side: the
    # answers that take two objects or a place.
    Stage(30.0, (768, 60, 448, 16, 800), 7e-4, {
        "t2i": 0.07, "t2i_counting": 0.06, "t2i_position": 0.05, "t2i_color_attribution": 0.02,
        "qa": 0.06, "qa_color": 0.09, "qa_relation": 0.10, "qa_where": 0.09, "qa_count": 0.07,
        "state": 0.15, "describe": 0.02,
        "edit": 0.12, "story": 0.06, "clip": 0.02, "text": 0.01}),
    # 4: Everything in balance, and from here on an end after a single image.
    Stage(40.0, (768, 92, 764, 25, 864), 7e-4, {
        "t2i": 0.12, "t2i_counting": 0.11, "t2i_position": 0.08, "t2i_color_attribution": 0.05,
        "qa": 0.04, "qa_color": 0.01, "qa_relation": 0.05, "qa_where": 0.05, "qa_count": 0.03,
        "state": 0.08, "describe": 0.02,
        "edit": 0.20, "story": 0.10, "clip": 0.04, "text": 0.02}),
    # 5: Questions alone, several about each image; nothing is generated. Where the thing is has to
    # be known as soon as it is named. From here on with Muon.
    Stage(20.0, (768, 4, 4, 1, 640), 2e-3, {
        "quiz": 0.15, "quiz_relation": 0.30,
        "qa": 0.05, "qa_relation": 0.20, "qa_where": 0.10, "qa_count": 0.05,
        "state_placed": 0.15}),
    # 6: Which of two things a question means. After stage 5, answers about sides had the right
    # axis and a side at random: both things were found, but not which was asked about. Asked where
    # one of two is, in the same words, the model learns to tell them apart within 150 steps, and
    # the sides follow.
    Stage(14.0, (768, 4, 4, 1, 640), 2e-3, {
        "quiz": 0.05, "quiz_told_apart": 0.50, "quiz_relation": 0.20,
        "qa": 0.05, "qa_relation": 0.15, "qa_where": 0.05}),
    # 7: Everything in balance again.
    Stage(60.0, (784, 68, 524, 17, 784), 2e-3, {
        "t2i": 0.09, "t2i_counting": 0.09, "t2i_position": 0.06, "t2i_color_attribution": 0.04,
        "qa": 0.02, "qa_color": 0.01, "qa_relation": 0.06, "qa_where": 0.03, "qa_count": 0.07,
        "qa_yes_no": 0.06, "quiz": 0.04, "quiz_relation": 0.10, "quiz_told_apart": 0.03,
        "state": 0.05, "describe": 0.02,
        "edit": 0.16, "story": 0.08, "clip": 0.03, "text": 0.01}),
    # 8: Numbers, claims and sides, several questions an image; nothing is generated.
    Stage(22.0, (768, 4, 4, 1, 512), 2e-3, {
        "quiz": 0.04, "quiz_yes_no": 0.34, "quiz_count": 0.18, "quiz_relation": 0.20,
        "qa": 0.04, "qa_yes_no": 0.09, "qa_count": 0.06, "qa_relation": 0.05}),
    # 9: Everything in balance once more.
    Stage(36.0, (784, 60, 484, 16, 752), 2e-3, {
        "t2i": 0.09, "t2i_counting": 0.08, "t2i_position": 0.08, "t2i_color_attribution": 0.04,
        "qa": 0.02, "qa_color": 0.01, "qa_relation": 0.05, "qa_where": 0.03, "qa_count": 0.06,
        "qa_yes_no": 0.06, "quiz": 0.02, "quiz_relation": 0.07, "quiz_told_apart": 0.02,
        "quiz_count": 0.05, "quiz_yes_no": 0.08, "state": 0.02, "describe": 0.01,
        "edit": 0.17, "story": 0.07, "clip": 0.02, "text": 0.01}),
)
# fmt: on
# An answer is a word or two, so its tokens count more.
NTP_WEIGHTS = {"qa": 8.0, "quiz": 8.0, "state": 2.0, "state_placed": 4.0}


def get_config(stage: str = "1"):
    if stage not in map(str, range(1, len(STAGES) + 1)):
        raise ConfigError(f"demo.py:stage={stage}: stages are 1 to {len(STAGES)}.")
    number, chosen = int(stage), STAGES[int(stage) - 1]
    names = ["demo", *(f"demo_stage{n}" for n in range(2, len(STAGES) + 1))]
    c = quickstart()
    c.name = names[number - 1]
    c.about = ""
    c.data.sources = mixture(chosen.sources, world="grid", ntp_weights=NTP_WEIGHTS)
    # From stage 4 on, it learns to end by itself after an image that was asked for.
    c.layout.end_after_image = "sometimes" if number >= 4 else "interleaved"

    p = c.packing
    p.und_tokens, p.clean_tokens, p.noised_tokens, p.images, p.vit_patches = chosen.packing

    c.model.num_layers = 6
    c.model.embed_dim = 192
    c.model.mlp_dim = 512
    c.model.head_dim = 48

    c.optimizer.learning_rate = chosen.learning_rate
    c.optimizer.warmup_steps = 100
    c.optimizer.ema_decay = 0.999
    if number >= 5:  # Muon where text is read: it learns what AdamW takes far longer for
        c.optimizer.kind = "muon"
        c.optimizer.muon_on = "und"
        c.optimizer.adam_share = 0.5

    c.train.init_from = f"runs/{names[number - 2]}" if number > 1 else ""
    c.train.max_minutes = chosen.minutes
    c.train.checkpoint_every = 1000
    c.train.eval_every = 2000
    c.train.log_every = 50
    return c
