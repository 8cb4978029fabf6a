"""The JSON report of preparation. No times and no host names: same data, same report."""

import csv
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_core.config import VotesConfig
from rlhf_core.dataprep.cleaning.quarantine import Quarantine
from rlhf_core.dataprep.intake import Intake
from rlhf_core.dataprep.ledger import votes_to_train_on
from rlhf_core.dataprep.manifest import Manifest
from rlhf_core.dataprep.votes.against_rest import against_rest
from rlhf_core.dataprep.votes.agreement import alpha_estimate
from rlhf_core.dataprep.votes.annotators import AnnotatorFacts, annotator_facts
from rlhf_core.dataprep.votes.vote_table import Ints
from rlhf_core.schema import Estimate, ValidationReport
from rlhf_core.schema.shown import shown_cell
from rlhf_core.storage.records import write_text

ANNOTATORS = "annotators.csv"


@dataclass(frozen=True, slots=True)
class AgreementReport:
    """What the votes say of each other."""

    alpha: Estimate | None
    """Of the votes that training rests on, see ``ledger.votes_to_train_on``; ties lower it."""
    alpha_of_all: Estimate | None
    """Of all votes, those on rows that were filtered out with them."""
    by_source: dict[str, Estimate | None]
    method: str
    """How votes became preferences: ``data.votes.method``."""
    num_decided_by_heads: int | None
    """Comparisons on which nobody with ``data.votes.min_votes`` votes voted; None by majority."""
    annotators: list[AnnotatorFacts]
    """Most careless-looking first."""
    num_votes: int
    """All, of which the next are what training rests on."""
    num_votes_trained_on: int
    num_repeated_votes: int
    """Left out: the same person had given the same answer in the same row."""
    excluded_votes: dict[str, int]
    """Left out by ``data.votes.exclude``, by annotator."""

    def as_json(self) -> dict[str, Any]:
        """Return the report's section; annotators who look careless are named."""
        careless = [facts for facts in self.annotators if facts.careless]
        return {
            "krippendorff_alpha": _estimate(self.alpha),
            "krippendorff_alpha_of_all_votes": _estimate(self.alpha_of_all),
            "by_source": {name: _estimate(alpha) for name, alpha in self.by_source.items()},
            "method": self.method,
            "num_decided_by_heads": self.num_decided_by_heads,
            "num_votes": self.num_votes,
            "num_votes_trained_on": self.num_votes_trained_on,
            "num_repeated_votes": self.num_repeated_votes,
            "excluded_votes": self.excluded_votes,
            "num_annotators": len(self.annotators),
            "num_careless": len(careless),
            "careless": [asdict(facts) for facts in careless],
        }


def describe_agreement(intake: Intake, votes: VotesConfig, seed: int) -> AgreementReport:
    """Measure agreement overall, by source, and of each annotator with the rest.

    Alpha is of the votes that training rests on; an annotator's record is of all their votes,
    whatever became of the comparison.
    """
    counts = intake.votes.counts(len(intake.entries))
    groups = intake.entries.groups()
    trained_on = np.flatnonzero(votes_to_train_on(intake.entries, counts))
    sources = intake.entries.by_source(trained_on)

    def alpha_of(rows: Ints) -> Estimate | None:
        names = [groups[row] for row in rows.tolist()]
        return alpha_estimate(counts[rows], names, **resampling)

    resampling = {"num_resamples": votes.num_resamples, "seed": seed}
    return AgreementReport(
        alpha=alpha_of(trained_on),
        alpha_of_all=alpha_estimate(counts, groups, **resampling),
        by_source={name: alpha_of(rows) for name, rows in sources.items()},
        method=votes.method,
        num_decided_by_heads=intake.num_decided_by_heads,
        annotators=annotator_facts(
            intake.votes,
            against_rest(intake.votes, groups, **resampling),
            intake.reliability,
            min_votes=votes.min_votes,
            fast_fraction=votes.fast_fraction,
        ),
        num_votes=int(counts.sum()),
        num_votes_trained_on=int(counts[trained_on].sum()),
        num_repeated_votes=intake.num_repeated_votes,
        excluded_votes=dict(sorted(intake.excluded_votes.items())),
    )


def write_annotators(path: Path, annotators: Sequence[AnnotatorFacts]) -> None:
    """Write every annotator's record as CSV, the most careless-looking first."""
    names = [field.name for field in fields(AnnotatorFacts)]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        for facts in annotators:
            row = {name: _rounded(value) for name, value in asdict(facts).items()}
            row["careless"] = " ".join(facts.careless)
            writer.writerow({name: shown_cell(value) for name, value in row.items()})


def write_report(
    path: Path,
    manifest: Manifest,
    quarantine: Quarantine,
    sections: dict[str, Any],
    validation: Iterable[ValidationReport],
) -> None:
    """Write counts, the ``sections`` as they are, and validation."""
    report = {
        "sha256": manifest.sha256,
        "inputs": _inputs(quarantine),
        "reading": _reading(quarantine),
        **sections,
        "splits": {name: facts.num_rows for name, facts in manifest.files.items()},
        "validation": [
            {**suite.model_dump(mode="json"), "passed": suite.passed} for suite in validation
        ],
    }
    write_text(path, json.dumps(report, indent=2, ensure_ascii=False) + "\n")


def _inputs(quarantine: Quarantine) -> dict[str, dict[str, object]]:
    names = sorted(set(quarantine.kept) | set(quarantine.reasons))
    return {
        name: {
            "rows": quarantine.kept[name] + quarantine.num_filtered(name),
            "kept": quarantine.kept[name],
            "set_aside": dict(sorted(quarantine.reasons.get(name, {}).items())),
            **_source_rows(quarantine, name),
        }
        for name in names
    }


def _source_rows(quarantine: Quarantine, name: str) -> dict[str, dict[str, int]]:
    rows = quarantine.source_rows.get(name)
    return {"source_rows": dict(sorted(rows.items()))} if rows else {}


def _reading(quarantine: Quarantine) -> dict[str, dict[str, Any]]:
    """What became of the rows of each file, by input and path."""
    return {
        name: {path: files[path].as_json() for path in sorted(files)}
        for name, files in sorted(quarantine.files.items())
        if files
    }


def _rounded(value: object) -> object:
    return round(value, 4) if isinstance(value, float) else value


def _estimate(estimate: Estimate | None) -> dict[str, Any] | None:
    return None if estimate is None else estimate.model_dump(mode="json")
