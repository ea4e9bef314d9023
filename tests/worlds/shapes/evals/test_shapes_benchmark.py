"""The benchmark's numbers, with samplers whose score is known."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from shapes_oracles import Blank, Endless, Oracle, Repeating, Silent

from mogao_jax.errors import ConfigError, DataError
from mogao_jax.evals.proportion import Proportion
from mogao_jax.sampling.options import SamplingOptions
from mogao_jax.sequence.document import Image, Text
from mogao_jax.worlds.shapes.evals import guidance, scores
from mogao_jax.worlds.shapes.evals.benchmark import GROUPS, Benchmark, run
from mogao_jax.worlds.shapes.evals.cases import TASKS, cases
from mogao_jax.worlds.shapes.evals.judging import judge, repeated_pixels
from mogao_jax.worlds.shapes.evals.scores import OVERALL
from mogao_jax.worlds.shapes.truth import CATEGORIES, EDITS, QUESTIONS


@pytest.fixture(scope="module")
def oracle():
    sampler = Oracle()
    return sampler, run(
        sampler, Benchmark(per_category=3, seed=5, batch_size=7), name="truth", role="oracle"
    )


def test_the_truth_scores_everything(oracle):
    _, found = oracle
    assert {r.task for r in found.rows} == set(TASKS)
    for row in found.rows:
        expected = 0.0 if row.metric == "repeated" else 1.0
        assert row.proportion.value == expected, row


def test_every_category_has_as_many_cases(oracle):
    _, found = oracle
    groups = {"t2i": CATEGORIES, "qa": QUESTIONS, "edit": EDITS}
    for task, wanted in groups.items():
        assert GROUPS[task] == wanted
        for group in wanted:
            metric = "done" if task == "edit" else "right"
            assert found.find(task, group, metric).proportion.total == 3
    assert found.find("t2i").proportion.total == 18
    assert found.find("story", metric="whole").proportion.total == 6
    judged = found.outcomes["story"]
    assert found.find("story", metric="steps").proportion.total == sum(
        len(j.case.truth.scenes) for j in judged
    )
    assert found.find("story", metric="repeated").proportion.total == sum(
        len(j.case.truth.scenes) - 1 for j in judged
    )


def test_requests_are_held_out_prompts_with_limits(oracle):
    sampler, _ = oracle
    seeds = {}
    for request in sampler.requests:
        task, split = request.document.id.split("/")[1:3]
        assert split == "validation"
        seeds.setdefault(task, []).append(request.seed)
        options, items = request.options, request.document.items
        assert options.num_steps == 50 and not options.draw_first
        if task in ("t2i", "story"):
            assert [type(i) for i in items] == [Text]
        elif task in ("qa", "edit"):
            assert [type(i) for i in items] == [Image, Text]
        else:
            assert isinstance(items[-1], Text) and isinstance(items[-2], Image)
        assert options.allow_images == (task != "qa")
        assert task == "qa" or options.max_images == (6 if task == "story" else 1)
    assert all(len(set(s)) == len(s) and min(s) == 5 * 2**20 for s in seeds.values())


def test_silence_and_blank_images_score_nothing():
    for sampler in (Silent(), Blank()):
        found = run(sampler, Benchmark(per_category=2, with_chance=False))
        for row in found.rows:
            if isinstance(sampler, Blank) and row.task == "story" and row.metric == "count":
                continue  # blank images are images
            assert row.metric == "repeated" or row.proportion.right == 0, row
    reasons = {j.reason for j in run(Silent(), Benchmark(("t2i",), 1)).outcomes["t2i"]}
    assert reasons == {"nothing was drawn"}


def test_repeating_the_last_image_is_found_out():
    found = run(Repeating(), Benchmark(("edit", "clip", "story"), 4, with_chance=False))
    assert found.find("edit", metric="done").proportion.value == 0
    assert found.find("edit", metric="repeated").proportion.value == 1
    assert found.find("edit", "recolor", "kept").proportion.value == 1
    assert found.find("edit", "background", "kept").proportion.value == 1
    assert found.find("clip", metric="done").proportion.value == 0
    story = {m: found.find("story", metric=m).proportion for m in ("count", "order", "whole")}
    assert story["count"].value == story["order"].value == 1 and story["whole"].value == 0
    assert found.find("story", metric="repeated").proportion.value == 1
    firsts = sum(len(j.images) > 0 for j in found.outcomes["story"])
    assert found.find("story", metric="steps").proportion.right == firsts


def test_a_story_must_come_to_its_end():
    found = run(Endless(), Benchmark(("story",), 2, with_chance=False))
    assert found.find("story", metric="count").proportion.value == 0
    assert found.find("story", metric="steps").proportion.value == 1


def test_chance_levels(oracle):
    _, found = oracle
    for row in found.rows:
        if row.metric in ("right", "done", "kept", "steps"):
            assert row.chance is not None and 0 <= row.chance < 0.7, row
    assert found.find("qa", "yes_no").chance == pytest.approx(0.5, abs=0.08)
    assert found.find("qa", "color").chance < 0.25
    # One object of one shape: 1 in 5 scenes has one object, 1 in 6 shapes.
    assert found.find("t2i", "single_object").chance == pytest.approx(1 / 30, abs=0.03)
    assert found.find("t2i", "color_attribution").chance < 0.01
    assert found.find("edit", metric="right").chance < 0.02


def test_cases_are_fixed():
    first, again = (cases("edit", EDITS, 2) for _ in range(2))
    assert [c.index for c in first] == [c.index for c in again]
    assert [c.index for c in cases("edit", EDITS, 3)][: len(first) // 2] == [
        c.index for c in first
    ][: len(first) // 2]
    other = cases("edit", EDITS, 2, seed=1)
    assert [c.prompt.items[1].text for c in other] != [c.prompt.items[1].text for c in first]


def test_planned_stories_must_tell_the_plan():
    source = [c for c in cases("story", ("planned",), 8) if len(c.truth.scenes) > 2]
    for case in source:
        (result,) = Oracle().sample([_request(case)])
        items = list(result.items)
        assert judge(case, items).checks == {"count": True, "order": True, "whole": True}
        items[2], items[4] = items[4], items[2]  # the second and third sentences
        checks = judge(case, items).checks
        assert checks["count"] and not checks["order"] and not checks["whole"]
        assert all(v.right for v in judge(case, items).images)  # judged by the request
    assert source


def test_free_stories_are_judged_by_their_own_sentences():
    for case in cases("story", ("free",), 6):
        (result,) = Oracle().sample([_request(case)])
        items = list(result.items)
        items[2] = Text("the background turns mint.")
        judged = judge(case, items)
        assert judged.checks["order"] == (case.truth.scenes[0].background != "mint")
        mint = case.truth.scenes[0].background != "mint" and (
            case.truth.edits[0].background == "mint"
        )
        assert judged.images[1].right == mint
        items[2] = Text("nothing that makes sense.")
        judged = judge(case, items)
        assert not judged.checks["order"] and not judged.images[1].right
        items[2] = Text(" ")
        assert not judge(case, items).checks["order"]


def test_a_step_of_a_story_that_changes_nothing_is_wrong():
    for case in cases("story", ("free",), 6):
        (result,) = Oracle().sample([_request(case)])
        items = list(result.items)
        assert judge(case, items).checks["whole"]
        background = case.truth.scenes[0].background
        items[2], items[3] = Text(f"the background turns {background}."), items[1]
        judged = judge(case, items)
        assert judged.images[1].reason == "its sentence changes nothing"
        assert judged.repeated[0] and not judged.images[1].right
        assert judged.checks["count"] and not judged.checks["order"]


def _request(case):
    from mogao_jax.sampling.requests import Request

    return Request(case.prompt, 0, SamplingOptions(max_images=6))


def test_answers_are_compared_up_to_spaces():
    case = cases("qa", ("color",), 1)[0]
    answer = case.truth.question.answer
    assert judge(case, [Text(f" {answer}\n")]).right
    assert judge(case, [Text(answer[:2]), Text(answer[2:])]).right
    for wrong in (answer.upper(), answer + ".", "", "the " + answer):
        assert not judge(case, [Text(wrong)]).right
    assert not judge(case, [Text(answer), Image(pixels=np.zeros((16, 16, 3), np.uint8))]).right


def test_repeated_pixels():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 200, (32, 48, 3), np.uint8)
    noisy = (image + rng.integers(0, 20, image.shape)).astype(np.uint8)
    changed = image.copy()
    changed[4:14, 4:14] += 50
    assert repeated_pixels(image, noisy) and not repeated_pixels(image, changed)
    assert not repeated_pixels(image, image[:16])


def test_unusable_arguments():
    with pytest.raises(ConfigError, match="there is no task 'draw'"):
        Benchmark(tasks=("draw",))
    with pytest.raises(ConfigError, match="1 or more"):
        Benchmark(per_category=0)


# -------------------------------------------------------------------------------------- figures


def test_wilson_interval():
    # Solves |p - x| = z sqrt(x (1 - x) / n) for x, by bisection.
    for right, total in ((0, 10), (7, 9), (100, 100), (350, 400)):
        low, high = Proportion(right, total).interval
        p = right / total

        def excess(x, p=p, n=total):
            return abs(p - x) - 1.959963984540054 * math.sqrt(x * (1 - x) / n)

        for edge, inside in ((low, p), (high, p)):
            if 0 < edge < 1:
                assert excess(edge) == pytest.approx(0, abs=1e-12)
                assert excess(0.5 * (edge + inside)) < 0
            else:
                assert edge == p
    assert Proportion(0, 0).interval == (0, 1) and math.isnan(Proportion(0, 0).value)
    assert Proportion(1, 2) + True + False + Proportion(3, 3) == Proportion(5, 7)


def test_scores_as_json_and_text(oracle):
    _, found = oracle
    record = json.loads(json.dumps(scores.to_json(found), allow_nan=False))
    again = scores.from_json(record, "here")
    assert again.rows == found.rows and again.name == "truth" and again.role == "oracle"
    text = scores.as_text(found, beside=again)
    for title in scores.TITLES.values():
        assert title in text
    assert "color attribution" in text and "oracle" in text and "chance" in text
    row = found.find("t2i", OVERALL)
    assert (
        record["rows"][[r["group"] for r in record["rows"]].index("overall")]["low"]
        == (row.proportion.interval[0])
    )
    for broken in ({}, [], {**record, "rows": [{}]}, {**record, "format": "x"}, None):
        with pytest.raises(DataError, match="here"):
            scores.from_json(broken, "here")


def test_broken_scores(oracle, tmp_path):
    """A file of somebody else's is refused with its name, whatever is in it."""
    record = scores.to_json(oracle[1])
    path = tmp_path / "scores.json"
    for field, value in (("right", math.inf), ("right", -1), ("total", 0), ("chance", "x")):
        rows = [{**record["rows"][0], field: value}]
        path.write_text(json.dumps({**record, "rows": rows}))
        with pytest.raises(DataError, match="scores.json"):
            scores.read(path)
    path.write_text("[" * 100_000)
    with pytest.raises(DataError, match="scores.json"):
        scores.read(path)


def test_what_is_scored_so_far_can_be_kept():
    kept = []
    tasks = ("qa", "clip", "t2i")
    found = run(Oracle(), Benchmark(tasks, 1, with_chance=False), keep=kept.append)
    assert [list(s.outcomes) for s in (*kept, found)] == [["qa"], ["qa", "clip"], list(tasks)]
    said = [s.settings.get("incomplete") for s in (*kept, found)]
    assert said == ["without clip, t2i", "without t2i", None]
    assert kept[1].rows == found.rows[: len(kept[1].rows)]
    assert {r.task for r in kept[1].rows} == {"qa", "clip"}


def test_guidance_table():
    sampler = Oracle()
    kept = []
    settings = guidance.guidance_table(
        sampler, Benchmark(per_category=1), scales=(1.0, 7.5), image_scales=(1.5,),
        keep=lambda made: kept.append(len(made)),
    )  # fmt: skip
    assert kept == [1, 2]
    assert [(s.guidance, s.image_guidance) for s in settings] == [(1.0, 1.5), (7.5, 1.5)]
    asked = [(r.options.guidance_scale, r.options.image_guidance_scale) for r in sampler.requests]
    half = len(asked) // 2  # of each setting, in this order
    assert asked == [(1.0, 1.5)] * half + [(7.5, 1.5)] * half and half > 10
    assert settings[0].proportions["edit", "done"].value == 1
    assert settings[0].proportions["story", "repeated"].value == 0
    text = guidance.as_text(settings)
    assert len(text.splitlines()) == 4 and "story repeats" in text
    assert json.dumps(guidance.as_json(settings))
    assert set(guidance.SCALES) == {1, 3, 7.5} and set(guidance.IMAGE_SCALES) == {1, 1.5, 7.5}
