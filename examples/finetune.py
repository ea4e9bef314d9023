"""Teaches a checkpoint your own captioned images, then draws one of the captions.

    python examples/finetune.py FOLDER "a caption" [MINUTES]

FOLDER has images, each with its caption in a .txt file of the same name. The run is kept in
runs/finetune, and the drawing in runs/finetune/drawn.png.
"""

import dataclasses
import pathlib
import sys

import mogao_jax
from mogao_jax.config import load_config
from mogao_jax.own_data import recipe_file


def main(folder: str, caption: str, minutes: str = "10", workdir: str = "runs/finetune") -> None:
    """Chooses a recipe for the folder, trains from the demo checkpoint, and draws."""
    run = pathlib.Path(workdir)
    recipe, notes = recipe_file(folder, run, init="demo")
    print("\n".join(notes))

    config = load_config(recipe)
    train = dataclasses.replace(config.train, max_minutes=float(minutes))
    result = mogao_jax.train(dataclasses.replace(config, train=train), run)
    print(f"{result.step} steps, flow loss {result.metrics['validation']['flow_loss']:.3f}")

    stream = mogao_jax.load(run).generate(caption, draw_first=True, max_images=1)
    (image,) = [item for item in stream if not isinstance(item, str)]
    image.save(run / "drawn.png")
    print(f"drawn: {run / 'drawn.png'}")


if __name__ == "__main__":
    main(*sys.argv[1:])
