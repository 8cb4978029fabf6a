import base64
from pathlib import Path

import pytest

from rlhf_core.config import GateConfig, PromotionConfig
from rlhf_core.evaluation.gates import decide
from rlhf_core.evaluation.plots import curve_plot, frontier_plot, interval_plot, length_plot
from rlhf_core.evaluation.report import (
    Page,
    Sample,
    ShownSuite,
    duration,
    gate_rows,
    interval,
    number,
    place,
    render_page,
)
from rlhf_core.evaluation.suites import SuiteAnswer
from rlhf_core.schema import Estimate, EvaluationReport, Message, ModelRef, StageResult
from rlhf_core.schema.results import Look, PeopleVotes, SuiteRecord

MODEL = ModelRef(
    name="rlhf-policy", version="7", uri="models:/rlhf-policy/7", path=Path("m"), sha256="s",
    kind="causal", run_id="r",
)  # fmt: skip
EVIL = '<script>alert("x")</script><img src=http://evil.example/p.png>'


def estimate(value, low, high):
    return Estimate(value=value, low=low, high=high, num_samples=300)


def finished(gates, **metrics):
    report = EvaluationReport(
        stage="policy",
        model=MODEL,
        metrics={f"policy/{name}": estimate(*numbers) for name, numbers in metrics.items()},
    )
    return StageResult(
        stage="evaluate", model=MODEL, report=report, decision=decide(gates, report), seconds=75.0,
        tracking_url="http://mlflow/#/run",
    )  # fmt: skip


def scorer(stage, breakdown, **metrics):
    """A judge or reward model that was measured, over all and by slice."""
    report = EvaluationReport(
        stage=stage,
        model=MODEL,
        metrics={f"{stage}/{name}": estimate(*numbers) for name, numbers in metrics.items()},
        breakdown={
            name: {f"{stage}/{quantity}": estimate(*numbers)}
            for name, (quantity, numbers) in breakdown.items()
        },
        units="best_of_k_accuracy on choices.jsonl: 40 of 40 rows, chance 0.25",
    )
    return StageResult(
        stage=stage, model=MODEL, report=report, decision=decide((), report), seconds=75.0,
        tracking_url="http://mlflow/#/run",
    )  # fmt: skip


SCORERS = tuple(
    scorer(
        stage,
        {
            "length_difference=middle": ("heldout_accuracy", (0.71, 0.6, 0.8)),
            "subset=maths": ("best_of_k_accuracy", (0.41, 0.3, 0.5)),
        },
        heldout_accuracy=(0.72, 0.6, 0.8),
        noise_ceiling=(0.9, 0.88, 0.92),
        best_of_k_accuracy=(0.44, 0.3, 0.5),
    )
    for stage in ("reward", "judge")
)
GATES = (GateConfig(metric="policy/win_rate", at_least=0.6),)


def page(**changes):
    result = finished(
        GATES,
        win_rate=(0.5, 0.4, 0.55),
        flattery=(0.4, 0.3, 0.5),
        flattery_increase=(0.3, 0.2, 0.4),
    )
    content = {
        "run_id": "20260101-000000-abcd",
        "project": "rlhf",
        "results": (result,),
        "promotion": None,
        "figures": {"Training": [curve_plot("loss", {"sft/loss": ((0, 1, 2), (3.0, 2.0, 1.5))})]},
        "samples": {},
        "lineage": None,
        "data": None,
        "settings": "{}",
    }
    return Page(**{**content, **changes})


def test_the_page_says_what_was_decided_and_why():
    html = render_page(page())
    assert '<div class="banner reject">' in html
    assert "even the upper bound is below 0.6" in html
    assert "win rate over SFT, by the judge" in html
    assert "it flatters the user" in html


def test_what_the_banner_lists_is_not_counted_again_and_the_stage_is_called_as_in_the_terminal():
    names = [f"one_{number}" for number in range(5)]
    gates = [GateConfig(metric=f"policy/{name}", at_least=0.6) for name in names]
    passed = finished(gates, **dict.fromkeys(names, (0.7, 0.65, 0.75)))
    html = render_page(page(results=(passed,)))
    assert "2 more gates passed or not applicable" in html
    assert [html.count(f"<li>policy/{name} = ") for name in names] == [1] * 5
    assert "models:/rlhf-policy/7, by the gates of evaluate<" in html
    assert "passed or not applicable" not in render_page(
        page(results=(finished(gates[:3], **dict.fromkeys(names, (0.7, 0.65, 0.75))),))
    )


def test_what_the_gold_rater_says_stands_at_a_glance():
    result = finished(GATES, win_rate=(0.7, 0.65, 0.75))
    gold = {"gold/correctness": estimate(0.83, 0.8, 0.9)}
    gold |= {"gold/correctness_change": estimate(0.06, 0.02, 0.1)}
    report = result.report.model_copy(update={"metrics": result.report.metrics | gold})
    html = render_page(page(results=(result.model_copy(update={"report": report}),)))
    for value, name in (("0.83", "correctness, by the gold rater"), ("0.06", "the same, less SFT")):
        assert f'<div class="value">{value}</div>' in html
        assert f"<div>{name}" in html


def test_accuracies_stand_beside_the_ceiling_and_best_of_k_by_subset():
    shown = page(results=(*SCORERS, finished(GATES, win_rate=(0.7, 0.65, 0.75))))
    assert list(shown.accuracies) == [
        "all pairs", "what the annotators' disagreement allows", "length_difference=middle",
    ]  # fmt: skip
    assert {name: [one.value for one in row] for name, row in shown.best_of_k.items()} == {
        "all rows": [0.44, 0.44], "subset=maths": [0.41, 0.41],
    }  # fmt: skip
    html = render_page(shown)
    assert "one right answer among several" in html
    assert "chance 0.25" in html
    assert "is spread over the pairs as a beta distribution" in html
    assert "one right answer among several" not in render_page(page())
    assert "beta distribution" not in render_page(page())


def test_answers_of_a_suite_that_changed_stand_open_and_the_others_closed():
    rows = [
        SuiteAnswer(
            item=str(number), prompt=(Message(role="user", content="When?"),), candidate="a",
            baseline="b", candidate_score=score, baseline_score=1.0,
        )
        for number, score in enumerate((0.0, 1.0, 1.0))
    ]  # fmt: skip
    record = SuiteRecord(
        source="town.jsonl", sha256="s", baseline="models:/p/1", baseline_score=1.0, lost=1,
        gained=0, answers=Path("a"),
    )  # fmt: skip
    suite = ShownSuite("town", record, {}, rows, baseline="champion")
    html = " ".join(render_page(page(suites=(suite,))).split())
    assert "<details open><summary>town: answers that changed (1)</summary>" in html
    assert "<details><summary>town: answers that pass or fail as before (2)</summary>" in html
    assert "<b>champion 1</b>" in html


def test_the_page_says_which_look_it_was_and_whose_votes_count():
    result = finished(GATES, win_rate=(0.5, 0.4, 0.55))
    known = {
        "look": Look(entry="models:/rlhf-looks/2", number=2, held_out="0123456789abcdef"),
        "people": PeopleVotes(pairs=40, votes=120, by=("ann", "bo", "cy")),
    }
    report = result.report.model_copy(update=known)
    html = render_page(page(results=(result.model_copy(update={"report": report}),)))
    assert "Look 2 at held-out prompts 0123456789ab" in html
    assert "120 votes by 3 annotators on 40 pairs" in html


def test_the_page_needs_nothing_from_outside():
    html = render_page(page())
    assert "default-src &#39;none&#39;" in html or "default-src 'none'" in html
    for outside in ("http://", "https://", "<script", "@import", "url("):
        assert outside not in html.replace("http://www.w3.org", "")


def test_what_models_and_people_wrote_is_escaped_everywhere():
    sample = Sample(
        prompt=(Message(role="user", content=EVIL),), tags={EVIL: EVIL}, policy=EVIL, sft=EVIL,
        won=1.0, scores={EVIL: (1.0, 0.0)},
    )  # fmt: skip
    data = {
        "inputs": {EVIL: {"rows": 1, "kept": 0, "set_aside": {EVIL: 1}}},
        "splits": {EVIL: 1},
        "note": EVIL,
    }
    html = render_page(
        page(samples={EVIL: [sample]}, data=data, settings=EVIL, notes=(EVIL,), run_id=EVIL)
    )
    assert "<script" not in html
    assert "<img src=http" not in html
    assert html.count("&lt;script&gt;") > 8


def test_alpha_of_all_votes_stands_beside_that_of_the_votes_trained_on():
    trained_on, of_all = ({"value": v, "low": v - 0.1, "high": v + 0.1} for v in (0.31, 0.42))
    agreement = {"krippendorff_alpha": trained_on, "krippendorff_alpha_of_all_votes": of_all}
    agreement |= {"num_votes": 9, "num_annotators": 3, "num_careless": 0}
    html = " ".join(render_page(page(data={"agreement": agreement})).split())
    assert "agreed ties are not among them, which lowers it. Of all votes 0.42 [0.32, 0.52]" in html


def test_careless_annotators_are_named_with_what_they_did():
    person = {"annotator": "worker-7", "careless": ["at_chance"], "num_votes": 40, "alpha": 0.01}
    html = render_page(page(data={"agreement": {"careless": [person]}}, data_docs="d/index.html"))
    assert "worker-7" in html
    assert "at chance" in html
    assert "<code>d/index.html</code>" in html


def test_a_run_that_has_finished_nothing_says_so():
    assert "NO DECISION" in render_page(page(results=()))


def test_the_same_run_gives_the_same_bytes():
    assert render_page(page()) == render_page(page())


def test_the_meter_places_interval_value_and_threshold_in_order():
    result = finished(GATES, win_rate=(0.5, 0.4, 0.55))
    [(outcome, meter)] = gate_rows(result)
    assert outcome.gate == "policy/win_rate"
    assert 0 < meter.left < meter.value < meter.left + meter.width < meter.limit < 100


def test_the_side_that_passes_is_the_rules():
    gates = (*GATES, GateConfig(metric="policy/kl", at_most=8.0))
    rows = gate_rows(finished(gates, win_rate=(0.5, 0.4, 0.55), kl=(2.0, 1.0, 3.0)))
    assert [meter.passes_above for _, meter in rows] == [True, False]


def slices_held(low, value, high):
    """A slice of the champion's gate, at margin 0.2."""
    metric = "policy/win_rate_over_champion"
    report = EvaluationReport(
        stage="policy", model=MODEL, metrics={}, champion="models:/rlhf-policy/3",
        breakdown={"style=terse": {metric: estimate(value, low, high)}},
    )  # fmt: skip
    decision = decide((), report, promotion=PromotionConfig())
    return StageResult(
        stage="evaluate", model=MODEL, report=report, decision=decision, seconds=1.0,
        tracking_url="http://mlflow/#/run",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("bounds", "verdict"),
    [
        ((0.31, 0.4, 0.49), "HOLD"),
        ((0.31, 0.4, 0.52), "PROMOTE"),
        ((0.2, 0.4, 0.52), "HOLD"),
        ((0.1, 0.2, 0.29), "REJECT"),
    ],
)
def test_a_gate_on_both_bounds_is_drawn_with_both(bounds, verdict):
    """The legend's rule, on the picture: the bar reaches the green, none of it is in the red."""
    result = slices_held(*bounds)
    [(outcome, meter)] = gate_rows(result)
    assert outcome.verdict == verdict
    reaches_green = meter.left + meter.width >= meter.passes
    none_in_red = meter.left >= meter.limit
    assert (reaches_green and none_in_red) == (verdict == "PROMOTE")
    html = render_page(page(results=(result,)))
    assert f'<s class="allowed" style="left:{meter.limit}%;width:{meter.allowed}%">' in " ".join(
        html.split()
    )
    bound = html[html.index('<div class="bound">') : html.index('<div class="track')]
    assert ">0.3<" in bound
    assert ">0.5<" in bound


def test_what_failed_is_shown_first_and_what_passed_is_not_among_the_reasons():
    gates = (GateConfig(metric="policy/kl", at_most=8.0), *GATES)
    result = finished(gates, win_rate=(0.62, 0.55, 0.7), kl=(2.0, 1.0, 3.0))
    assert [outcome.verdict for outcome, _ in gate_rows(result)] == ["HOLD", "PROMOTE"]
    html = render_page(page(results=(result,)))
    banner = html[html.index('<div class="banner') : html.index("</ul>")]
    assert "policy/win_rate" in banner
    assert "policy/kl" not in banner


def test_the_page_says_when_with_what_and_what_is_needed():
    html = render_page(
        page(facts={"total time": "2 h 5 min", "date": EVIL}, needed=("about 900 samples",))
    )
    for text in ("total time", "2 h 5 min", "&lt;script&gt;", "about 900 samples"):
        assert text in html


@pytest.mark.parametrize(
    ("address", "text"),
    [
        ("sqlite:////w/mlflow.db/#/experiments/1/runs/42f7", "MLflow run 42f7"),
        ("http://127.0.0.1:40001/#/experiments/1/runs/42f7", "MLflow run 42f7"),
        ("http://localhost:5000/#/experiments/1/runs/42f7", "MLflow run 42f7"),
        ("https://mlflow.example/#/experiments/1/runs/42f7",) * 2,
    ],
)
def test_an_address_is_shown_where_others_can_follow_it(address, text):
    assert place(address) == text


def test_an_open_interval_has_no_meter():
    result = finished(GATES, win_rate=(0.5, 0.4, float("inf")))
    assert gate_rows(result)[0][1] is None


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.61234, "0.612"), (12345.6, "1.235e+04"), (0.0, "0"), (float("inf"), "∞"), (-2.5, "-2.5")],
)
def test_numbers_read_well(value, text):
    assert number(value) == text


def test_intervals_and_times_read_well():
    assert interval(estimate(0.5, 0.4, float("inf"))) == "[0.4, ∞]"
    assert [duration(4.24), duration(75), duration(7500)] == ["4.2 s", "1 min 15 s", "2 h 5 min"]


@pytest.mark.parametrize(
    "draw",
    [
        lambda: curve_plot("t", {"a/b": ((0, 1), (1.0, 2.0)), "a/c": ((0, 1), (2.0, 1.0))}),
        lambda: frontier_plot("t", (0.0, 1.0, 2.0), (0.0, 1.0, 1.5)),
        lambda: length_plot("t", {"policy": [1, 2, 3], "SFT": [2, 2, 2]}),
        lambda: interval_plot(
            "t",
            {
                "terse": {"judge": estimate(0.6, 0.5, 0.7), "gold": estimate(0.5, 0.4, 0.6)},
                "open": {"judge": estimate(0.6, 0.5, float("inf"))},
            },
            neutral=0.5,
        ),
    ],
    ids=["curves", "frontier", "lengths", "intervals"],
)
def test_a_picture_is_an_svg_and_the_same_every_time(draw):
    address = draw()
    picture = base64.b64decode(address.removeprefix("data:image/svg+xml;base64,"))
    assert picture.startswith(b"<?xml")
    assert b"<svg" in picture
    assert draw() == address


@pytest.mark.parametrize("tag", [r"topic: $\foo$", "price: $5^ {x$", "a: " + "very long " * 40])
def test_any_tag_can_stand_in_a_picture(tag):
    rows = {tag: {"judge": estimate(0.6, 0.5, 0.7)}}
    assert interval_plot("t", rows, neutral=0.5).startswith("data:image/svg+xml")


def test_a_long_label_leaves_room_for_the_picture():
    start, rows = "a: " + "very long " * 4, {"judge": estimate(0.6, 0.5, 0.7)}
    pictures = {interval_plot("t", {start + end: rows}, neutral=0.5) for end in ("x", "yy" * 90)}
    assert len(pictures) == 1
