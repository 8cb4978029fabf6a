"""A source that shows the better answer first, or writes longer: measured, and zero where not."""

import numpy as np

from rlhf_core.dataprep.keys import DialogueKey, text_key
from rlhf_core.dataprep.ledger import Entry, Labelled, Ledger
from rlhf_core.dataprep.measures.source_bias import source_estimates, source_facts


def entries(source: str, *, first_wins: float, mean_chars: float, num_rows=400, seed=0):
    rng = np.random.default_rng([seed, *source.encode()])
    rows = []
    for number in range(num_rows):
        lengths = rng.normal(mean_chars, 20, size=2).astype(int).tolist()
        rows.append(
            Entry(
                prompt=text_key(f"{source} {number}"),
                dialogue=DialogueKey(text_key(f"{source} {number}")),
                pair=text_key("pair"),
                a_first=True,
                source=source,
                line=1,
                num_chars=(lengths[0], lengths[1]),
                reason=None,
                a_beats_b=float(rng.random() < first_wins),
            )
        )
    return rows


def labelled(rows: list[Entry]) -> Labelled:
    return Ledger(rows).labelled()


def test_sources_alike_predict_nothing():
    rows = [row for name in "xyz" for row in entries(name, first_wins=0.5, mean_chars=100)]
    found = source_estimates(labelled(rows), seed=0)
    assert found["source_label_auc"].low < 0.5 < found["source_label_auc"].high
    assert found["source_length_share"].value < 0.01
    assert source_estimates(labelled(rows), seed=0) == found


def test_a_source_that_shows_the_better_first_is_found():
    rows = entries("x", first_wins=0.9, mean_chars=100)
    rows += entries("y", first_wins=0.3, mean_chars=100)
    assert source_estimates(labelled(rows), seed=0)["source_label_auc"].low > 0.7
    facts = source_facts(labelled(rows))
    assert facts["x"].first_win.low > 0.8
    assert facts["y"].first_win.high < 0.4
    assert facts["x"].num_pairs == 400


def test_a_source_that_writes_longer_explains_length():
    rows = entries("x", first_wins=0.5, mean_chars=100)
    rows += entries("y", first_wins=0.5, mean_chars=200)
    found = source_estimates(labelled(rows), seed=0)["source_length_share"]
    # Two means 100 apart, a deviation of 20 over root two within: 2500 of 2500 + 200.
    assert abs(found.value - 2_500 / 2_700) < 0.02
    assert found.low > 0.9
    assert source_facts(labelled(rows))["y"].mean_chars > 190


def test_one_source_or_too_few_pairs_are_not_compared():
    rows = entries("x", first_wins=0.5, mean_chars=100)
    assert source_estimates(labelled(rows), seed=0) == {}
    few = entries("y", first_wins=0.5, mean_chars=100, num_rows=10)
    assert source_estimates(labelled(rows + few), seed=0) == {}
    same = entries("y", first_wins=1.0, mean_chars=100) + entries("z", first_wins=1.0, mean_chars=9)
    assert "source_label_auc" not in source_estimates(labelled(same), seed=0)
