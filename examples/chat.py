"""A conversation in text and images: each turn goes on from everything before.

    python examples/chat.py ["a red circle left of a blue square" "paint the circle green." ...]

Images are saved into samples/chat.
"""

import pathlib
import sys

import mogao_jax
from mogao_jax.sequence.document import Document, Item, Text

TURNS = ("a red circle left of a blue square", "paint the circle green.", "remove the square.")


def main(*turns: str, folder: str = "samples/chat") -> Document:
    """Says each turn, prints what is written, saves what is drawn; returns the conversation."""
    out = pathlib.Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    model = mogao_jax.load("demo")
    items: tuple[Item, ...] = ()
    for number, said in enumerate(turns or TURNS, start=1):
        print(f"> {said}")
        document = Document((*items, Text(said, role="user", loss=False)))
        stream = model.generate(document, seed=number, max_images=1)
        for item in stream:
            if isinstance(item, str):
                print(item, end="", flush=True)
            else:
                item.save(out / f"{number}.png")
                print(f"[{out / f'{number}.png'}]")
        items = stream.result.document.items
    return Document(items)


if __name__ == "__main__":
    main(*sys.argv[1:])
