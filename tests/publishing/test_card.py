"""Laws of the model card: it says what the run's files say, and nothing that they do not."""

from __future__ import annotations

import ast
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard

from hf_grounding_dino.data.records import Record, SourceEntry
from hf_grounding_dino.publishing.card import write_card
from hf_grounding_dino.publishing.facts import (
    CardFacts,
    DatasetFacts,
    Score,
    dataset_facts,
    facts_of_run,
    write_datasets,
)
from listed_records import ListedRecords
from publishing.published_run import write_run

BARE = CardFacts(name="thing", model_type="grounding-dino")
SCORE = Score("val", "AP", 0.5, None)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("run") / "first")


def sections(card: str) -> dict[str, str]:
    """Title -> text of each section."""
    parts = re.split(r"^## (.*)$", ModelCard(card).text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_the_best_model_is_that_of_the_best_evaluation(run: Path) -> None:
    """AP on the first set: 0.85 at step 200, 0.83 at step 400; two evaluations after the one before training."""
    best, last = facts_of_run(run), facts_of_run(run, which="last")
    assert (best.step, best.chosen_by, best.chosen_of) == (200, "new shape", 2)
    assert (last.step, last.chosen_by) == (400, "")
    assert Score("new shape", "AP", 0.85, 0.10) in best.scores
    assert Score("old shapes", "AP", 0.78, 0.80) in last.scores
    assert "APs" not in {score.metric for score in best.scores}, "-1 is no score"


def test_secrets_and_folders_are_nobodys_business(run: Path) -> None:
    facts = facts_of_run(run)
    text = write_card(facts) + str(facts)
    assert "hf_never_to_be_seen" not in text
    assert "/home/someone" not in text
    assert facts.recipe["train"][0]["annotations"] == "ten.json"


def test_the_metadata_is_what_the_hub_reads(run: Path) -> None:
    facts = facts_of_run(run, repo_id="someone/new-shape", license="apache-2.0", tags=["shapes"])
    data = ModelCard(write_card(facts)).data
    assert data.library_name == "transformers"
    assert data.pipeline_tag == "zero-shot-object-detection"
    assert data.license == "apache-2.0"
    assert {"grounding-dino", "mm-grounding-dino", "hf_grounding_dino", "shapes"} <= set(data.tags)
    assert data.model_name == "new-shape"
    values = {(r.dataset_name, r.metric_name): r.metric_value for r in data.eval_results}
    assert values == {
        ("new shape", "AP, IoU 0.50:0.95"): 0.85,
        ("new shape", "AP, IoU 0.50"): 0.95,
        ("old shapes", "AP, IoU 0.50:0.95"): 0.79,
    }


def test_only_what_is_on_the_hub_is_linked_there() -> None:
    """A base model and a data set by their ids; a folder and a file have no id."""
    on_hub = DatasetFacts(name="cars", format="datasets", hub_id="someone/cars")
    facts = replace(BARE, base_model="IDEA-Research/grounding-dino-tiny", datasets=(on_hub, DatasetFacts(name="local")))
    data = ModelCard(write_card(facts)).data
    assert data.base_model == "IDEA-Research/grounding-dino-tiny"
    assert data.base_model_relation == "finetune"
    assert data.datasets == ["someone/cars"]
    bare = ModelCard(write_card(replace(BARE, base_name="folder"))).data.to_dict()
    assert not {"base_model", "datasets", "license", "model-index", "metrics"} & set(bare)


def test_what_is_not_known_has_no_section() -> None:
    assert list(sections(write_card(BARE))) == ["How to use it", "Limits", "License"]
    assert "not tested in its run" in sections(write_card(BARE))["Limits"]
    assert "None was named" in sections(write_card(BARE))["License"]
    assert "None" not in write_card(replace(BARE, license="mit"))


def test_a_whole_run_has_every_section_with_something_in_it(run: Path) -> None:
    facts = replace(facts_of_run(run, license="apache-2.0"), curves=True, examples=True)
    found = sections(write_card(facts))
    titles = ["How to use it", "Data", "Recipe", "Results", "Curves", "Examples", "Limits", "License"]
    assert list(found) == titles
    assert all(text.strip() for text in found.values())
    assert "(curves.png)" in found["Curves"] and "(examples.png)" in found["Examples"]
    assert "| ten images | training | coco | 10 | 1,234 | 8 |" in found["Data"]
    assert "| `denoising.queries` | 100 |" in found["Recipe"] and "lora" not in found["Recipe"]


def test_the_results_say_what_was_lost(run: Path) -> None:
    """0.80 before, 0.79 after: 0.01 lost; the new set gained, and is called no loss."""
    results = sections(write_card(facts_of_run(run)))["Results"]
    assert "| AP, IoU 0.50:0.95 | 0.800 | 0.790 | -0.010 |" in results
    assert "On old shapes, training lost 0.010 AP." in results
    assert "On new shape" not in results
    kept = replace(BARE, scores=(Score("old", "AP", 0.5, 0.5),), datasets=(DatasetFacts(name="old", role="retain"),))
    assert "On old, training lost no AP." in write_card(kept)


def test_scores_that_have_nothing_before_them_have_no_such_column() -> None:
    results = sections(write_card(replace(BARE, scores=(SCORE,))))["Results"]
    assert "| val | this model |" in results and "before" not in results


def test_limits_are_the_facts() -> None:
    """Trained with cat and dog. Tested with Dog alone: nothing new; with dog and eel: one of two new."""
    train = DatasetFacts(name="pets", labels=("cat", "dog"))
    facts = replace(BARE, base_name="base", scores=(SCORE,))
    same = replace(facts, datasets=(train, DatasetFacts(name="val", role="eval", labels=("Dog",))))
    other = replace(facts, datasets=(train, DatasetFacts(name="val", role="eval", labels=("dog", "eel"))))
    unknown = replace(facts, datasets=(train, DatasetFacts(name="val", role="eval")))
    assert "with no other words" in write_card(same)
    assert "not trained with: 1 of 2." in write_card(other)
    assert "trained with" not in sections(write_card(unknown))["Limits"]
    assert "What it lost" in write_card(same)
    assert "What it lost" not in write_card(replace(facts, scores=(Score("val", "AP", 0.5, 0.4),)))
    chosen = replace(facts, chosen_by="val", chosen_of=7)
    assert "best of 7 evaluations by its score on val" in write_card(chosen)


def test_thousands_of_labels_are_cut() -> None:
    """1,203 labels: 40 are named, 1,163 counted."""
    labels = tuple(f"thing {i}" for i in range(1203))
    card = write_card(replace(BARE, datasets=(DatasetFacts(name="many", labels=labels),)))
    assert "thing 39, and 1,163 more." in card
    assert "thing 40" not in card


def test_odd_names_break_no_table_and_no_code() -> None:
    """A bar and a line break in a name, a quotation mark in a label."""
    odd = DatasetFacts(name="a|b\nc", images=1, labels=('19" rack', "back\\slash"))
    card = write_card(replace(BARE, datasets=(odd,), scores=(Score("a|b\nc", "AP", 0.5, None),)))
    assert "| a\\|b c | training | 1 | 2 |" in card
    assert ModelCard(card).data.eval_results[0].dataset_name == "a|b\nc"
    for code in re.findall(r"```python\n(.*?)```", card, re.DOTALL):
        compile(code, "card", "exec")
        assert r'"19\" rack", "back\\slash"' in code


def test_a_data_set_is_counted_without_its_images(tmp_path: Path) -> None:
    """Records of 2, 0 and 3 boxes whose images do not exist."""
    records = [
        Record(image_id=i, image=tmp_path / "none.png", boxes=torch.ones(n, 4), labels=torch.zeros(n).long())
        for i, n in enumerate((2, 0, 3))
    ]
    entry = SourceEntry(format="coco", annotations="x.json")
    facts = dataset_facts(ListedRecords("pets", records, ("cat", "dog")), "eval", entry)
    assert facts == DatasetFacts(name="pets", role="eval", format="coco", images=3, boxes=5, labels=("cat", "dog"))
    write_datasets(tmp_path, [facts])
    (tmp_path / "best").mkdir()
    (tmp_path / "best" / "config.json").write_text('{"model_type": "grounding-dino"}')
    assert facts_of_run(tmp_path).datasets == (facts,)


def test_scores_of_few_images_and_of_known_ones_are_told() -> None:
    val = DatasetFacts(name="val", role="eval", images=5000, measured=500, trained_on=True)
    limits = sections(write_card(replace(BARE, datasets=(val,), scores=(SCORE,))))["Limits"]
    assert "Of val, the first 500 of 5,000 images were measured." in limits
    assert "It was trained on val too" in limits
    plain = replace(val, measured=None, trained_on=False)
    limits = sections(write_card(replace(BARE, datasets=(plain,), scores=(SCORE,))))["Limits"]
    assert "were measured" not in limits and "trained on val" not in limits


def test_html_of_others_is_text() -> None:
    """In names, labels and options: nothing of it is a tag, ends a block of code, or opens a row or a title."""
    evil = "<img src=x onerror=alert(1)>\n\n# Title | ```\n<script>"
    facts = CardFacts(
        name=evil,
        model_type=evil,
        base_name=evil,
        license=evil,
        datasets=(
            DatasetFacts(name=evil, labels=(evil, "cat")),
            DatasetFacts(name=evil, role="retain", labels=(evil,)),
        ),
        scores=(Score(evil, "AP", 0.5, 0.6), Score(evil, evil, 0.5, None)),
        chosen_by=evil,
        chosen_of=2,
        recipe={"prompts": {evil: evil}, "seed": 1},
    )
    text = ModelCard(write_card(facts)).text
    outside, inside = "", ""
    for number, part in enumerate(re.split(r"^```.*$", text, flags=re.MULTILINE)):
        if number % 2:
            inside += part
        else:
            outside += part
    assert "<" not in outside and "&lt;script&gt;" in outside
    assert text.count("\n```") == 4, "two blocks of code"
    assert not re.search(r"^# Title", text, re.MULTILINE)
    assert "candidate_labels=[" in inside
    for line in re.findall(r"candidate_labels=(\[.*\]), threshold", inside):
        assert ast.literal_eval(line) == [evil, "cat"]
