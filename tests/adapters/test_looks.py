"""Looks at a held-out set: on record, counted, and given back by no deletion."""

import hashlib
import uuid
from pathlib import Path
from threading import Thread

import pytest

from rlhf_core.adapters.registry.looks import (
    MEASURED,
    SAMPLING,
    read_looks,
    sets_looked_at,
    take_look,
)
from rlhf_core.adapters.tracking.mlflow_client import mlflow_client
from rlhf_core.adapters.tracking.tracking import open_run
from rlhf_core.schema import DatasetRef, Look, ModelRef


def held_out(name):
    return DatasetRef(
        path=Path("p"), sha256=hashlib.sha256(name.encode()).hexdigest(), num_rows=9,
        dvc_md5="m", git_revision=None,
    )  # fmt: skip


def keys(*numbers):
    return [hashlib.sha256(str(number).encode()).digest()[:16] for number in numbers]


def model(name, version="1"):
    return ModelRef(
        name=f"rlhf-{name}", version=version, uri=f"runs/{name}", path=Path("m"),
        sha256=f"{name}{version}", kind="causal", run_id="",
    )  # fmt: skip


@pytest.fixture
def project(mlflow_home):
    return f"p{uuid.uuid4().hex}"


@pytest.fixture
def look(config, context, project):
    with open_run(config, context, "evaluate", inputs={}) as run:

        def take(policy="1", *, prompts=range(500), judge="1", champion=None, name="set", draw="0"):
            models = {"policy": model("policy", policy), "judge": model("judge", judge)}
            models |= {"champion": model("policy", champion)} if champion else {}
            rows = keys(*prompts)
            return take_look(
                project, held_out(name), rows, models=models, sampling=f"seed {draw}", run=run
            )

        yield take


def test_the_same_question_is_one_look_and_another_one_is_the_next(look, project):
    assert look("1").number == 1
    assert look("1").number == 1
    assert look("2").number == 2
    assert look("1", judge="2").number == 3
    assert look("1", champion="9").number == 4
    assert len(read_looks(project)) == 4


def test_a_set_of_other_prompts_begins_anew_and_one_that_grew_a_little_does_not(look, project):
    assert look("1").number == 1
    assert look("2", name="grown", prompts=range(600)).number == 2
    assert look("3", name="half as large", prompts=range(250)).number == 3
    assert look("4", name="another", prompts=range(9_000, 9_500)).number == 1
    numbers = {seen.held_out: seen.number for seen in sets_looked_at(project)}
    assert numbers[held_out("half as large").sha256] == 3
    assert numbers[held_out("another").sha256] == 1


def test_prompts_that_were_all_seen_are_no_new_set_however_they_are_mixed(look):
    for part in range(4):
        prompts = range(part * 500, part * 500 + 500)
        for number in range(2):
            look(f"{part} {number}", name=f"part {part}", prompts=prompts)
    mixed = [part * 500 + row for part in range(4) for row in range(50)]
    assert look("9", name="mixed", prompts=mixed).number == 9
    fresh = range(9_000, 9_000 + 2 * len(mixed))
    assert look("9", name="most of it new", prompts=[*mixed, *fresh]).number == 1


def test_a_small_and_a_large_set_together_saw_what_neither_saw_most_of(look):
    look("1", name="small", prompts=range(90))
    look("2", name="large", prompts=range(1_000, 4_000))
    assert look("3", name="of both", prompts=[*range(90), *range(1_000, 1_180)]).number == 3
    assert look("3", name="of one", prompts=[*range(90), *range(9_000, 9_180)]).number == 1


def test_a_look_that_is_deleted_counts_all_the_same(look, project):
    look("1")
    second = look("2").entry.rpartition("/")[2]
    mlflow_client().delete_model_version(f"{project}-looks", second)
    assert look("3").number == 3
    mlflow_client().delete_model_version(f"{project}-looks", "3")
    assert look("4").number == 4


def test_a_look_that_ended_early_and_is_drawn_in_another_way_is_another_one(look, project):
    first = look(draw="0")
    assert (first.number, first.sampling) == (1, "seed 0")
    assert look(draw="0").entry == first.entry
    second = look(draw="1")
    assert (second.number, second.sampling) == (2, "seed 1")
    mlflow_client().set_model_version_tag(f"{project}-looks", "2", MEASURED, "run")
    for draw in ("0", "1", "2"):
        stands = look(draw=draw)
        assert (stands.entry, stands.measured_by) == (second.entry, "run")
        assert stands.sampling == "seed 1"


def test_a_look_of_an_earlier_build_that_ended_early_is_gone_on_with(look, project):
    entry = look("1").entry
    mlflow_client().delete_model_version_tag(f"{project}-looks", "1", SAMPLING)
    assert [seen.number for seen in sets_looked_at(project)] == [1]
    assert look("1", draw="7").entry == entry
    assert look("1", draw="8").number == 2


def test_looks_at_once_are_counted_one_by_one(look):
    found = []
    workers = [Thread(target=lambda n=n: found.append(look(str(n)).number)) for n in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert sorted(found) == [1, 2, 3, 4, 5, 6]


def test_all_looks_together_spend_no_more_than_the_budget():
    looks = [Look(entry="e", held_out="h", number=number) for number in range(1, 5_000)]
    spent = [sum(look.share for look in looks[:count]) / 2 for count in (1, 2, 30, 4_999)]
    assert spent == pytest.approx([3 / 4 - 1 / (4 * count) for count in (1, 2, 30, 4_999)])
