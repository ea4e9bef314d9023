"""Documents stay as they are, byte for byte: shipped checkpoints and scores were made with them."""

from __future__ import annotations

import hashlib

import pytest

from mogao_jax.sequence.document import Text
from mogao_jax.worlds.shapes.scene import WORLDS
from mogao_jax.worlds.shapes.tasks import TASK_CATEGORIES, TASKS
from mogao_jax.worlds.shapes.world import SPLITS, ShapesSource

DIGESTS = {
    "text": "296ea5311bf3f6bc",
    "qa": "302c11f71ccad243",
    "t2i": "d625146c5d606cb5",
    "edit": "578a9a42441e24e4",
    "story": "14f0876792956aaf",
    "clip": "224ff61fe68314d6",
    "describe": "bf6310876268b0bd",
    "state": "454eed0aa3edcfc8",
    "quiz": "110a91bcbee4f181",
}


def digest(task, worlds=("free", "grid", "primer")):
    """Of the first documents of these worlds, every category and split, with their truths."""
    made = hashlib.sha256()
    for world in (WORLDS[name] for name in worlds):
        for category in ("", *TASK_CATEGORIES.get(task, ())):
            for split in SPLITS:
                source = ShapesSource(task, 3, split, world=world, category=category)
                for index in range(12):
                    document, truth = source.with_truth(index)
                    made.update(repr((document.id, truth)).encode())
                    for item in document.items:
                        made.update(repr((item.role, item.loss)).encode())
                        text = isinstance(item, Text)
                        made.update(item.text.encode() if text else item.pixels.tobytes())
    return made.hexdigest()[:16]


@pytest.mark.parametrize("task", TASKS)
def test_documents(task):
    assert digest(task) == DIGESTS[task]


def test_documents_of_novel_shapes():
    found = " ".join(digest(task, ["novel"]) for task in TASKS)
    assert hashlib.sha256(found.encode()).hexdigest()[:16] == "1877b490e84e094c"
