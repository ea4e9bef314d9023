import collections
import dataclasses
import re

import numpy as np
import pytest
import shapes_reader as reader

from mogao_jax.worlds.shapes import captions, edits, questions
from mogao_jax.worlds.shapes.placement import arrange, distinct_kinds
from mogao_jax.worlds.shapes.scene import DEFAULT_WORLD, RELATIONS, Object, Scene
from mogao_jax.worlds.shapes.truth import CATEGORIES, EDITS, QUESTIONS, Request, Wanted, satisfies
from mogao_jax.worlds.shapes.world import ShapesSource

SHORT = {"left of": "left", "right of": "right", "above": "above", "below": "below", None: None}


def texts(document):
    return [item.text for item in document.items if hasattr(item, "text")]


def test_captions_determine_requests_and_images_grant_them():
    source = ShapesSource("t2i", seed=1)
    seen = collections.Counter()
    for index in range(1500):
        document, truth = source.with_truth(index)
        (text,), (scene,), request = texts(document), truth.scenes, truth.request
        seen[request.category] += 1
        assert truth.category == request.category and satisfies(scene, request)
        assert reader.background_word(text) == request.background
        said = reader.phrases(text)
        after = re.search(rf"(?:that is|in|colored) ({'|'.join(reader.COLORS)})\b", text)
        if len(said) == 1 and after:
            said[0].color = after[1]
        read = collections.Counter((p.shape, p.color, p.size, p.count) for p in said)
        assert read == collections.Counter(
            (w.shape, w.color, w.size, w.count) for w in request.wanted
        )
        relation = reader.relation_word(text)
        assert (relation is None) == (request.relation is None)
        if relation is not None:
            a, b = (p.only(scene) for p in said)
            assert reader.side(a, b) == relation
        match request.category:
            case "single_object":
                assert len(scene.objects) == 1 and said[0].color is None
            case "colors":
                assert len(scene.objects) == 1 and said[0].color == scene.objects[0].color
            case "counting":
                assert len(scene.objects) == said[0].count >= 2
            case "two_objects":
                assert len({o.shape for o in scene.objects}) == 2
                assert not any(p.color for p in said)
            case "color_attribution":
                assert len({o.color for o in scene.objects}) == 2 and all(p.color for p in said)
            case "position":
                assert relation is not None
    assert set(seen) == set(CATEGORIES)
    assert all(abs(n - 250) < 70 for n in seen.values())  # five standard deviations


@pytest.mark.parametrize("category", CATEGORIES)
def test_requests_refuse_other_images(category):
    """What the caption asks is not granted by an image made for another request, but if it is."""
    rng = np.random.default_rng(CATEGORIES.index(category))
    pairs = [captions.request_and_scene(rng, DEFAULT_WORLD, category) for _ in range(60)]
    crossed = 0
    for i, (request, _) in enumerate(pairs):
        for j, (_, scene) in enumerate(pairs):
            crossed += i != j and satisfies(scene, request)
    assert crossed < 0.25 * 60 * 59


def test_satisfies():
    def scene(*objects):
        return Scene(64, 64, "white", tuple(Object(*o) for o in objects))

    red_left = ("circle", "red", "small", 14, 10, 30)
    blue_right = ("square", "blue", "large", 22, 45, 30)
    image = scene(red_left, blue_right)
    red, blue = Wanted("circle", "red"), Wanted("square", "blue")
    for order in ((red, blue), (blue, red)):
        assert satisfies(image, Request("two_objects", order))
    assert satisfies(image, Request("position", (red, blue), "left of"))
    assert satisfies(image, Request("position", (blue, red), "right of"))
    for name in set(RELATIONS) - {"left of"}:
        assert not satisfies(image, Request("position", (red, blue), name))
    assert not satisfies(image, Request("colors", (red,)))  # something besides
    assert not satisfies(scene(red_left), Request("two_objects", (red, blue)))
    swapped = Wanted("circle", "blue"), Wanted("square", "red")
    assert not satisfies(image, Request("color_attribution", swapped))
    assert not satisfies(image, Request("two_objects", (red, blue), background="mint"))
    assert satisfies(image, Request("counting", (Wanted(count=2),)))
    assert not satisfies(image, Request("counting", (Wanted(count=3),)))
    assert not satisfies(image, Request("two_objects", (Wanted("circle", size="large"), blue)))


def test_every_answer_is_right():
    source = ShapesSource("qa", seed=2)
    answers = collections.defaultdict(collections.Counter)
    for index in range(3000):
        document, truth = source.with_truth(index)
        text, said = texts(document)
        (scene,), question = truth.scenes, truth.question
        assert reader.answer(text, scene) == said == question.answer, (text, scene)
        kind = f"yes_no {question.claim}" if question.claim else question.kind
        answers[kind][said] += 1
    assert {kind.split()[0] for kind in answers} == set(QUESTIONS)
    for kind, counts in answers.items():
        share = counts.most_common(1)[0][1] / counts.total()
        # No answer is worth guessing.
        assert share < (0.65 if kind.startswith("yes_no") else 0.35), (kind, counts)
    assert len(answers["color"]) == 8 and len(answers["shape"]) == 6
    assert len(answers["count"]) == 6 and len(answers["where"]) == 9


def about(text, scene, category):
    """What a question of a category is about: an answer may be copied where this is the same."""
    said = reader.phrases(text)
    if category == "count" or text.startswith(("is there", "are there", "do you see")):
        # Also where another number is claimed: of the same things there is one right number.
        return str(dataclasses.replace(said[0], det=None))
    things = [id(found[0]) for p in said if len(found := p.all(scene)) == 1]
    if category == "relation" or reader.relation_word(text):
        return frozenset(things)
    if category == "told_apart" and "as opposed to" not in text:
        things.reverse()
    return tuple(things)


@pytest.mark.parametrize("category", (*questions.QUIZZES, ""))
def test_every_answer_of_a_quiz_is_right_and_none_is_asked_twice(category):
    source = ShapesSource("quiz", seed=4, category=category)
    answers, lengths = collections.Counter(), collections.Counter()
    for index in range(300):
        document, truth = source.with_truth(index)
        (scene,), said = truth.scenes, texts(document)
        asked = []
        for text, reply in zip(said[::2], said[1::2], strict=True):
            assert reader.answer(text, scene) == reply, (text, scene)
            asked.append(about(text, scene, category))
            answers[reply] += 1
        if category:
            assert len(set(asked)) == len(asked), said
        lengths[len(asked)] += 1
        assert truth.category == (category or "mixed")
    assert max(lengths) == 4 and lengths[1] < 200
    # No answer is worth guessing.
    share = answers.most_common(1)[0][1] / answers.total()
    assert share < (0.6 if category == "yes_no" else 0.4), answers
    assert len(answers) >= {"yes_no": 2, "relation": 4, "count": 6}.get(category, 6), answers


def test_statements_of_places_end_in_them():
    source = ShapesSource("state", seed=5, category="placed")
    places = collections.Counter()
    for index in range(200):
        document, truth = source.with_truth(index)
        (scene,), (_, said) = truth.scenes, texts(document)
        for sentence in re.split(r"(?<=\.) ", said):
            (thing,) = reader.phrases(sentence)
            place = reader.part(thing.only(scene), scene)
            assert sentence.endswith(f" {place}.")
            places[place] += 1
    assert len(places) == 9


def test_descriptions_say_everything_and_only_what_is_so():
    source = ShapesSource("describe", seed=8)
    placed = related = 0
    for index in range(600):
        document, truth = source.with_truth(index)
        (scene,) = truth.scenes
        _, said = texts(document)
        head, listed, *rest = re.split(r"(?<=objects): |(?<=object): |\. ", said.rstrip("."))
        assert head.split()[0] == reader.NUMBERS[len(scene.objects)]
        # Every object once, with all that it is; a place is the object's own.
        entries = re.split(r", | and ", listed)
        found = [(o, e) for e in entries for p in reader.phrases(e) for o in p.all(scene)]
        assert len(entries) == len(scene.objects) == len(reader.phrases(listed))
        assert {id(o) for o, _ in found} == {id(o) for o in scene.objects}
        for entry in entries:
            (phrase,) = reader.phrases(entry)
            assert phrase.size and phrase.color and phrase.shape
            place = reader.part_word(entry)
            assert place is None or place in {reader.part(o, scene) for o in phrase.all(scene)}
            placed += place is not None
        for sentence in re.split(r", | and ", " ".join(rest)) if rest else ():
            a, b = (p.only(scene) for p in reader.phrases(sentence))
            assert reader.relation_word(sentence) == reader.side(a, b)
            related += 1
    assert placed > 600 and related > 600


def test_statements_are_true_and_decided_by_their_last_word():
    source = ShapesSource("state", seed=9)
    values = collections.defaultdict(collections.Counter)
    for index in range(800):
        document, truth = source.with_truth(index)
        (scene,), (_, said) = truth.scenes, texts(document)
        made = re.split(r"(?<=\.) ", said)
        assert 1 <= len(made) <= 5
        facts = []
        for sentence in made:
            things = reader.phrases(sentence)
            if ":" in sentence:
                kind, value = "count", sentence.rstrip(".").split()[-1]
                facts.append((kind, str(things[0])))
                assert reader.NUMBERS[len(things[0].all(scene))] == value
            elif sentence.startswith("seen from "):
                other, subject = (p.only(scene) for p in things)
                kind, value = "relation", reader.side(subject, other)
                facts.append((kind, *sorted((id(subject), id(other)))))
                assert re.search(rf"is (on the )?{value}\.$", sentence)
            elif len(things) == 2:
                kind, value = "shape", things[1].shape
                assert things[0].only(scene).shape == value
            elif place := reader.part_word(sentence):
                kind, value = "where", place
                assert reader.part(things[0].only(scene), scene) == value
            else:
                kind, value = "color", sentence.rstrip(".").split()[-1]
                assert things[0].only(scene).color == value
            if kind in ("shape", "where", "color"):
                facts.append((kind, id(things[0].only(scene))))
            values[kind][value] += 1
        assert len(facts) == len(made) == len(set(facts))  # nothing is said twice
    assert {kind: len(v) for kind, v in values.items()} == {
        "count": 6, "relation": 4, "shape": 6, "where": 9, "color": 8
    }  # fmt: skip
    for kind, counts in values.items():  # of most things named there is one
        share = counts.most_common(1)[0][1] / counts.total()
        assert share < (0.65 if kind == "count" else 0.35), (kind, counts)


def test_edits_do_what_they_say_and_nothing_else():
    source = ShapesSource("edit", seed=3)
    seen = collections.Counter()
    for index in range(1500):
        document, truth = source.with_truth(index)
        (text,), (before, after), (edit,) = texts(document), truth.scenes, truth.edits
        assert (before.height, before.width) == (after.height, after.width)
        assert reader.check_change(text, before, after) == edit.kind == truth.category, text
        # The order of the objects left alone is kept too.
        rest = [o for o in before.objects if o in after.objects]
        assert rest == [o for o in after.objects if o in before.objects]
        assert edits.apply(before, edit) == after
        seen[edit.kind] += 1
    assert set(seen) == set(EDITS) and min(seen.values()) > 170


def test_edit_truth_names_what_was_asked():
    source = ShapesSource("edit", seed=4)
    for index in range(500):
        truth = source.truth(index)
        before, after, edit = *truth.scenes, truth.edits[0]
        assert (edit.target in before.objects) == (edit.kind not in ("add", "background"))
        assert (edit.new in after.objects) == (edit.kind not in ("remove", "background"))
        if edit.asked is not None:
            assert edit.asked.matches(edit.new)
        if edit.relation is not None:
            assert reader.side(edit.new, edit.anchor) == SHORT[edit.relation]
        if edit.region is not None:
            assert reader.part(edit.new, after) == edit.region


def test_impossible_edits_are_none():
    rng = np.random.default_rng(0)
    full = arrange(rng, distinct_kinds(rng, 1), DEFAULT_WORLD)
    assert edits.random_edit(rng, full, DEFAULT_WORLD, "remove") is None
    empty = full.with_objects(())
    assert edits.random_edit(rng, empty, DEFAULT_WORLD, "recolor") is None


def test_stories_step_by_step():
    source = ShapesSource("story", seed=5)
    planned = 0
    kinds = set()
    for index in range(600):
        document, truth = source.with_truth(index)
        request, *sentences, closing = texts(document)
        scenes = truth.scenes
        assert len(sentences) == len(scenes) == len(truth.edits) + 1
        assert 2 <= len(scenes) <= 4 and len(scenes[0].objects) == 1
        assert len({(s.height, s.width) for s in scenes}) == 1
        assert closing in ("done.", "the end.", "that is all.", "finished.")
        (first,) = reader.phrases(sentences[0])
        assert first.fits(scenes[0].objects[0]) and first.shape and first.color
        for k, sentence in enumerate(sentences[1:]):
            kind = reader.check_change(sentence, scenes[k], scenes[k + 1])
            assert kind == truth.edits[k].kind
            kinds.add(kind)
        # The request promises as much.
        if truth.planned:
            planned += 1
            head, *steps = request.split(", then ")
            assert reader.phrases(head)[-1].fits(scenes[0].objects[0])
            assert len(steps) == len(truth.edits)
            for k, step in enumerate(steps):
                order = step.split(".")[0]
                assert reader.check_change(order, scenes[k], scenes[k + 1]) == truth.edits[k].kind
        else:
            assert reader.NUMBERS[len(scenes)] in request.split()
            for phrase in reader.phrases(request):
                assert phrase.fits(scenes[0].objects[0])
    assert 300 < planned < 480 and kinds == set(EDITS)


def test_clips_move_as_told():
    source = ShapesSource("clip", seed=6)
    ways = {"right": (1, 0), "left": (-1, 0), "up": (0, -1), "down": (0, 1)}
    for index in range(300):
        document, truth = source.with_truth(index)
        said = texts(document)
        assert 2 <= len(said) == len(truth.scenes) <= 4
        for k, text in enumerate(said):
            (way,) = set(re.findall(r"\b(right|left|up|down)(?:wards)?\b", text))
            speed = 10 if re.search("quickly|fast", text) else 4
            assert re.search("quickly|fast|slowly|a little", text)
            assert way == truth.motion.direction
            assert (truth.motion.dx, truth.motion.dy) == tuple(speed * c for c in ways[way])
            scene = truth.scenes[k]
            if k == 0:
                *still, mover = reader.phrases(text)
                assert mover.fits(scene.objects[0])
                assert [o for p in still for o in p.all(scene)] == list(scene.objects[1:])
                continue
            for phrase in reader.phrases(text):
                assert phrase.only(scene) == scene.objects[0]
            before = truth.scenes[k - 1]
            assert scene.objects[1:] == before.objects[1:]
            assert scene.objects[0].cx - before.objects[0].cx == truth.motion.dx
            assert scene.objects[0].cy - before.objects[0].cy == truth.motion.dy


N = "|".join(reader.NUMBERS)
SIDES = {"circle": 0, "disk": 0, "ring": 0, "square": 4, "triangle": 3, "star": 10}
SIDES |= {"cross": 12, "plus": 12}


def value(word):
    return int(word) if word.isdigit() else reader.NUMBERS.index(word)


def follows(said: str) -> str:
    """What must follow a line of the text documents."""
    if found := re.fullmatch(r"is an? (\w+) round\?", said):
        return "no." if SIDES[found[1]] else "yes."
    if found := re.fullmatch(
        r"how many (?:sides|corners) (?:does|has) an? (\w+)(?: have)?\?", said
    ):
        return f"{reader.NUMBERS[SIDES[found[1]]]}." if SIDES[found[1]] else "none."
    if found := re.fullmatch(r"(?:what is|is) (\w+)(?:,)? a color or a shape\?", said):
        return "a color." if found[1] in reader.COLORS else "a shape."
    if said.startswith("the "):
        a, b, *_ = reader.phrases(said)
        first, asked = said.split(". ")
        held = OPPOSITES[reader.relation_word(first)]
        if asked.startswith("where"):
            return f"{held + ' of' if held in ('left', 'right') else held} THING"
        return "yes." if reader.relation_word(asked) == held else "no."
    if found := re.search(rf"take ({N}) from (\w+)", said):
        return f"{reader.NUMBERS[value(found[2]) - value(found[1])]}."
    if found := re.search(rf"what is (\w+) \w+ minus ({N})\?", said):
        return f"{reader.NUMBERS[value(found[1]) - value(found[2])]}."
    if found := re.search(rf"there (?:is|are) (\w+) \w+\. ({N}) go(?:es)? away", said):
        return f"{reader.NUMBERS[value(found[1]) - value(found[2])]}."
    listed = reader.phrases(said)
    if "how many shapes" in said or "how many" not in said or "how much" in said:
        counted = [p for p in listed if p.shape]
    else:
        counted = [p for p in listed[:-1] if p.shape == listed[-1].shape]
    return reader.NUMBERS[sum(p.count for p in counted)] + " THINGS"


OPPOSITES = reader.OPPOSITES


def test_text_is_true():
    source = ShapesSource("text", seed=7)
    kinds = set()
    checked = 0
    for index in range(2000):
        document, truth = source.with_truth(index)
        kinds.add(truth.category)
        said = texts(document)
        assert truth.scenes == ()
        if len(said) == 1:
            continue  # the same sentences in one piece
        for line, reply in zip(said[::2], said[1::2], strict=True):
            want = follows(line)
            checked += 1
            if want.endswith(" THING"):
                first = reader.phrases(line.split(".")[0])[0]
                assert reply.startswith(want.removesuffix(" THING"))
                (back,) = reader.phrases(reply)
                assert (back.shape, back.color) == (first.shape, first.color)
            elif want.endswith(" THINGS"):
                number = want.removesuffix(" THINGS")
                assert re.fullmatch(rf"{number}( \w+)?\.", reply), (line, reply, want)
            else:
                assert reply == want, (line, reply, want)
    assert checked > 1500 and len(kinds) == 6


def test_wording_varies():
    """Counted with objects, colours, numbers and backgrounds blotted out."""
    blot = re.compile(
        rf"\b(?:{'|'.join([*reader.COLORS, *reader.BACKGROUNDS, *reader.NUMBERS])}|\d)\b"
    )
    for task, least in (("t2i", 300), ("qa", 120), ("edit", 200)):
        source = ShapesSource(task, seed=8)
        forms = set()
        for index in range(2000):
            user = [i.text for i in source[index].items if hasattr(i, "text") and not i.loss]
            forms |= {reader.PHRASE.sub("X", blot.sub("C", t)) for t in user}
        assert len(forms) >= least, (task, len(forms))
