"""What preparation insists on; each failure is one line, with the rows in question kept."""

import json
import logging
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf_core.config import DataConfig, GateConfig
from rlhf_core.dataprep.assemble import PAIR_FILES, PreparedFiles
from rlhf_core.dataprep.cleaning.quarantine import Quarantine
from rlhf_core.dataprep.intake import Intake
from rlhf_core.dataprep.measures.dialogues import DialogueFacts
from rlhf_core.dataprep.sources.rows import FAULTS, FileRows
from rlhf_core.errors import DataError, MissingMetricError
from rlhf_core.evaluation.gates import judge_estimate
from rlhf_core.schema import Estimate, GateResult, ValidationReport
from rlhf_core.stages.preparation.report import AgreementReport
from rlhf_core.storage.records import atomic_file, read_lines, shorten

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)

QUARANTINE = "quarantine.parquet"
FAILING = "failing-rows.jsonl"
MARK = "failed.json"
"""Manifest of a folder that holds what a failed preparation is about."""


def require_rows(intake: Intake, subject: str, quarantine: Path) -> None:
    """Refuse input that yields no comparison at all."""
    if not intake.num_rows:
        raise DataError(f"{subject}: no rows; expected one comparison a line")
    if not len(intake.entries):
        raise DataError(
            f"{subject}: no rows left: all {intake.num_rows} were filtered out;"
            f" reasons in {quarantine}"
        )


def require_readable(quarantine: Quarantine, most: float, kept: Path) -> None:
    """Refuse a file of which more than a share of the rows cannot be read at all."""
    require_readable_files(quarantine.files.get("preferences", {}), most, f"reasons in {kept}")


def require_readable_files(files: Mapping[str, FileRows], most: float, then: str) -> None:
    """Refuse a file of which more than ``most`` of the rows cannot be read; ``then`` ends it."""
    for path, counts in files.items():
        if counts.num_faults > most * counts.rows:
            raise DataError(
                f"{path}: {counts.num_faults} of {counts.rows} rows cannot be read, more than"
                f" data.max_unusable_fraction = {most:g}; the first: {counts.first_fault}; {then}"
            )


def warn_of_unread_cells(quarantine: Quarantine) -> None:
    """Log which columns that a vote can do without could not be read in some rows."""
    for path, counts in quarantine.files.get("preferences", {}).items():
        for column, first in counts.first_unread.items():
            logger.warning(
                "unread_cells: %s: column %s could not be read in %d of %d rows, which count"
                " without it; the first: %s",
                path,
                shorten(column),
                counts.unread_cells[column],
                counts.rows,
                first,
            )


def require_readable_others(quarantine: Quarantine, data: DataConfig, kept: Path) -> None:
    """Refuse other inputs than comparisons likewise."""
    files = ", ".join(str(file.path) for file in data.unpaired_files)
    named = {
        "unpaired": files,
        "demonstrations": data.demonstrations.path,
        "prompts": data.prompts.path,
        "heldout_prompts": data.prompts.heldout_path,
    }
    for name, path in named.items():
        reasons = quarantine.reasons.get(name, Counter())
        faults = sum(count for reason, count in reasons.items() if reason in FAULTS)
        rows = quarantine.kept[name] + reasons.total()
        if faults > data.max_unusable_fraction * rows:
            raise DataError(
                f"{path}: {faults} of {rows} rows cannot be read, more than"
                f" data.max_unusable_fraction = {data.max_unusable_fraction:g}; reasons in {kept}"
            )


def require_passed(
    report: ValidationReport,
    subject: str,
    frame: "pd.DataFrame",
    failures: Path,
    records: Path | None = None,
) -> None:
    """Refuse data that fails a blocking check; its rows are written to ``failures``.

    Args:
        report: of one suite.
        subject: what the message begins with.
        frame: what the suite saw; the first column names the rows, long texts are excerpts.
        failures: folder for the rows that failed.
        records: the same rows in full, one JSON object a line in the order of the frame; None
            where the excerpts have to do.
    """
    failed = [check for check in report.checks if check.severity == "block" and not check.passed]
    if not failed:
        return
    check = failed[0]
    kept = ""
    failing = frame[frame.columns[0]].isin(check.failing_ids)
    if failing.any():
        path = failures / FAILING
        with atomic_file(path) as stream:
            if records is None:
                text = frame[failing].to_json(orient="records", lines=True, force_ascii=False)
                stream.write(text.encode())
            else:
                lines = (text for _, text in read_lines(records))
                for text in compress(lines, failing):
                    stream.write(text.encode() + b"\n")
        kept = f"; first: {_first_failing(frame, failing)}; the failing rows are kept in {path}"
    raise DataError(f"{subject}: {report.suite}: check failed: {check.name}: {check.detail}{kept}")


def _first_failing(frame: "pd.DataFrame", failing: "pd.Series[bool]") -> str:
    """Say which row fails first and where it stands, or which two rows share an id."""
    column = str(frame.columns[0])
    first = frame[failing].iloc[0]
    name = f"{column} {first[column]!r}"
    if "line" not in frame:
        return name
    place = f"{first['source']}, line {first['line']}"
    same_id = frame[frame[column] == first[column]]
    others = same_id[same_id["content"] != first["content"]]
    if others.empty:
        return f"{name} of {place}"
    other = others.iloc[0]
    return (
        f"{name} of {other['source']}, line {other['line']} stands for other texts in {place}; give"
        " one of them another id, or leave ids out"
    )


def require_agreement(agreement: AgreementReport, subject: str, min_alpha: float | None) -> None:
    """Refuse data whose Krippendorff's alpha is below ``min_alpha`` or not defined."""
    if min_alpha is None:
        return
    if agreement.alpha is None:
        raise DataError(
            f"{subject}: agreement is not defined: no comparison has two votes, or all votes are"
            f" the same; data.min_alpha = {min_alpha} needs several votes a comparison"
        )
    if agreement.alpha.value < min_alpha:
        raise DataError(
            f"{subject}: Krippendorff's alpha is {agreement.alpha.value:.3f}, expected at least"
            f" {min_alpha}; look for careless annotators or unclear instructions, or lower"
            " data.min_alpha"
        )


def require_pairs(intake: Intake, subject: str, min_pairs: int, quarantine: Path) -> None:
    """Refuse input that leaves fewer pairs than ``min_pairs``."""
    reasons = intake.entries.reasons()
    num_pairs = len(intake.entries) - reasons.total()
    if num_pairs >= min_pairs:
        return
    left = f"{num_pairs} pairs" if num_pairs else "no rows"
    listing = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common())
    raise DataError(
        f"{subject}: {left} left of {intake.num_rows} rows, expected at least {min_pairs}"
        f" (data.min_pairs); filtered out: {listing or 'none'}; reasons in {quarantine}"
    )


def require_filled(
    files: PreparedFiles, dialogues: Mapping[str, DialogueFacts], subject: str
) -> None:
    """Refuse a split that leaves a prepared file empty."""
    empty = [name for name, num_rows in files.num_rows.items() if not num_rows]
    if not empty:
        return
    kind = "pairs" if set(empty) & set(PAIR_FILES) else empty[0].rsplit("_", 1)[0]
    found = dialogues.get(kind)
    why = "" if found is None else f": {_largest_dialogues(kind, found)}"
    raise DataError(
        f"{subject}: no rows for {', '.join(empty)}{why}; give more dialogues, leave out a first"
        " turn that different ones share, or change data.heldout_fraction or data.judge_fraction"
    )


def warn_of_large_dialogues(dialogues: Mapping[str, DialogueFacts], data: DataConfig) -> None:
    """Log where one dialogue alone has more rows than a side of the split should have."""
    shares = (data.heldout_fraction, data.judge_fraction)
    smallest = min(part for share in shares for part in (share, 1 - share) if part > 0)
    reported: set[str] = set()
    for kind, found in sorted(dialogues.items(), key=lambda item: item[0] != "pairs"):
        if found.largest > smallest * found.rows and found.opening not in reported:
            reported.add(found.opening)
            logger.warning(
                "large_dialogue %s; sides and halves differ from the shares asked for; where"
                " different dialogues share that turn, leave it out",
                _largest_dialogues(kind, found),
            )


def _largest_dialogues(kind: str, found: DialogueFacts) -> str:
    dialogues = "one dialogue" if found.dialogues == 1 else f"{found.dialogues} dialogues"
    return (
        f"the {found.rows} {kind} are {dialogues}, the largest of {found.largest}, which begins"
        f" {found.opening!r}, and a dialogue lies whole on one side"
    )


def require_balance(quarantine: Quarantine, intake: Intake) -> None:
    """Refuse to lose a row: rows read = rows kept + rows filtered out."""
    kept, filtered = quarantine.kept["preferences"], quarantine.num_filtered("preferences")
    if kept + filtered != intake.num_rows:
        raise DataError(
            f"preferences: {intake.num_rows} rows read, but {kept} kept and {filtered} filtered"
            " out; this is a defect of preparation, please report it"
        )


def judge_dataset(
    metrics: Mapping[str, Estimate], gates: Sequence[GateConfig]
) -> tuple[GateResult, ...]:
    """Apply the data gates to what was measured; ``require_gates`` refuses those left over."""
    measured = (gate for gate in gates if gate.metric in metrics)
    return tuple(judge_estimate(gate, metrics[gate.metric]) for gate in measured)


def require_gates(
    results: Sequence[GateResult], gates: Sequence[GateConfig], subject: str, report: Path
) -> None:
    """Refuse a dataset unless every gate was judged and says PROMOTE.

    Raises:
        MissingMetricError: a gate asks for what was not measured.
        DataError: a gate does not pass.
    """
    missing = {gate.metric for gate in gates} - {result.gate for result in results}
    if missing:
        raise MissingMetricError(
            f"{subject}: data.gates: not measured on this data: {', '.join(sorted(missing))};"
            f" what was measured stands in {report}"
        )
    failed = [result for result in results if result.verdict != "PROMOTE"]
    if failed:
        reasons = " ".join(f"{result.verdict}: {result.reason}" for result in failed)
        raise DataError(f"{subject}: the data gates refuse this dataset. {reasons} See {report}")


def keep(path: Path, directory: Path) -> None:
    """Copy a file or folder, if it exists, where people can look at it after a failure."""
    if path.is_file():
        directory.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, directory / path.name)
    elif path.is_dir():
        shutil.copytree(path, directory / path.name)


def mark_failed(directory: Path) -> None:
    """Write the manifest of a folder of failures, if there is anything in it."""
    if directory.is_dir():
        text = json.dumps({"rlhf": "failed preparation"})
        (directory / MARK).write_text(text + "\n", encoding="utf-8")


def is_marked_failed(directory: Path) -> bool:
    """Return whether a folder is one of failures; older ones are known by their quarantine."""
    try:
        marked = json.loads((directory / MARK).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return (directory / QUARANTINE).is_file()
    return isinstance(marked, dict) and "rlhf" in marked
