"""The ledger of looks: who looked at which held-out set, written before the first score is known.

Each look is a version of the registered model ``<project>-looks``: MLflow numbers versions one by
one, whoever else writes, and never gives a number twice. A look outlives the policy it was about,
and one that somebody deletes leaves a hole that counts for every set.
"""

import hashlib
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf_core.adapters.tracking.mlflow_client import (
    ensure_registered_model,
    mlflow_client,
    with_retries,
)
from rlhf_core.adapters.tracking.stage_run import StageRun
from rlhf_core.dataprep.keys import Key
from rlhf_core.errors import RegistryError
from rlhf_core.schema import DatasetRef, EvaluationReport, Look, ModelRef
from rlhf_core.schema.model_uri import split_model_uri, version_uri
from rlhf_core.storage.records import read_record

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

SUFFIX = "-looks"
QUESTION, HELD_OUT, SKETCH = "rlhf.question", "rlhf.held_out", "rlhf.held_out_sketch"
MEASURED, SAMPLING = "rlhf.measured_by", "rlhf.sampling"
"""Tags of a look: the run that keeps its report, once it came to an end; how answers are drawn."""
VOTES, ROUNDS = "rlhf.votes.", "rlhf.votes_rounds"
"""Tags of a look: for each collection, run and file of the votes on its answers; and the digests of
the votes that were decided with, in order."""
_VOTES_FOLDER = "votes"
_SKETCH_SIZE = 128
_SAME_SET = 0.5
"""A set of which this part of the prompts was seen, by whichever looks, has been looked at."""


@dataclass(frozen=True)
class Entry:
    """One version of the ledger."""

    number: int
    question: str
    held_out: str
    sketch: frozenset[int]
    tags: Mapping[str, str]

    @property
    def draw(self) -> tuple[str, str]:
        """What was asked, and how; earlier builds did not say how before they had measured."""
        return self.question, self.tags.get(SAMPLING, "")

    def saw(self, held_out: str, sketch: frozenset[int]) -> bool:
        """Whether this look was at the same set, or at most of its prompts."""
        return self.held_out == held_out or _overlap(sketch, self.sketch) >= _SAME_SET


def take_look(
    project: str,
    held_out: DatasetRef,
    prompts: Iterable[Key],
    *,
    models: Mapping[str, ModelRef],
    sampling: str,
    run: StageRun,
) -> Look:
    """Record a look, or find the one that asked the same: same weights, set, judge and champion.

    One that was not measured to the end asked the same only if it drew its answers in the same way:
    somebody may have seen them, and other ones are another look.

    Args:
        project: prefix of the registered names.
        held_out: the file of held-out prompts.
        prompts: a key for each of them: a set that shares most of its prompts is the same set.
        models: ``policy``, ``judge`` and, where there is one, ``champion``.
        sampling: how answers are drawn.
        run: of the evaluation.

    Raises:
        RegistryError: MLflow refuses, or does not answer; nothing may be measured then.
    """
    name, sketch = project + SUFFIX, _sketch(prompts)
    asked = [held_out.sha256, *(f"{role} {models[role].sha256}" for role in sorted(models))]
    question = hashlib.sha256("\n".join(asked).encode()).hexdigest()
    tags = {
        QUESTION: question,
        HELD_OUT: held_out.sha256,
        SAMPLING: sampling,
        SKETCH: " ".join(f"{key:x}" for key in sorted(sketch)),
        "rlhf.run_id": run.lineage["rlhf.run_id"],
        **{f"rlhf.{role}": model.uri for role, model in models.items()},
    }
    entries = read_looks(project)
    if not _same(entries, question, sampling):
        with_retries(f"opening the ledger {name}", lambda: _open_ledger(name, project))
        with_retries("recording a look", lambda: _write(name, models["policy"], run, tags))
        entries = read_looks(project)
    mine = _same(entries, question, sampling)[0]
    look = Look(
        entry=version_uri(name, mine.number),
        held_out=held_out.sha256,
        number=_number(entries, mine, held_out.sha256, sketch),
        measured_by=mine.tags.get(MEASURED),
        sampling=mine.tags.get(SAMPLING, sampling),
    )
    if SAMPLING not in mine.tags:
        _set_tag(look.entry, SAMPLING, sampling)
    return look


def _same(entries: Sequence[Entry], question: str, sampling: str) -> list[Entry]:
    """Looks that asked the same: those that were measured, or else those that draw the same."""
    asked = [entry for entry in entries if entry.question == question]
    measured = [entry for entry in asked if MEASURED in entry.tags]
    return measured or [one for one in asked if one.tags.get(SAMPLING, sampling) == sampling]


def read_looks(project: str) -> list[Entry]:
    """Return every look of a project that is on record, oldest first."""
    name = project + SUFFIX
    found = with_retries(
        f"reading the looks of {project}",
        lambda: list(mlflow_client().search_model_versions(f"name = '{name}'")),
    )
    return sorted((_entry(version) for version in found), key=lambda entry: entry.number)


def sets_looked_at(project: str) -> list[Look]:
    """Return the newest look at each held-out set, the set that was looked at last first."""
    entries, latest = read_looks(project), {}
    for entry in entries:
        latest[entry.held_out] = Look(
            entry=version_uri(project + SUFFIX, entry.number),
            held_out=entry.held_out,
            number=_number(entries, entry, entry.held_out, entry.sketch),
        )
    return sorted(latest.values(), key=lambda look: -int(split_model_uri(look.entry).version))


def finish_look(look: Look, run: StageRun) -> None:
    """Say where the measurement lies: from here on it stands, whatever is sampled again."""
    if look.measured_by is None:
        _set_tag(look.entry, MEASURED, run.run_id)


def measured_before(look: Look, samples: Path) -> EvaluationReport:
    """Return what a look that came to an end has measured; its sample file goes to ``samples``.

    Raises:
        RegistryError: the run's files are gone; what to do.
    """
    run_id = str(look.measured_by)
    with tempfile.TemporaryDirectory() as folder:
        try:
            found = with_retries(
                f"reading what {look.entry} measured",
                lambda: mlflow_client().download_artifacts(run_id, "evaluation", folder),
            )
            report = read_record(Path(found) / "report.json", EvaluationReport)
            samples.write_bytes((Path(found) / "samples.jsonl").read_bytes())
        except (RegistryError, OSError) as error:
            raise RegistryError(
                f"{look.entry}: these weights were measured on this held-out set by run {run_id}, "
                f"whose files cannot be read ({error}); bring the run back, or renew the held-out "
                "prompts: another seed is no new evidence"
            ) from error
    return report.model_copy(update={"samples": samples, "look": look})


def find_look(entry: str) -> tuple[Look, dict[str, str]]:
    """Return a look that is on record, and its tags.

    Raises:
        RegistryError: there is no such look, or nothing was measured at it yet.
    """
    name, number, _ = split_model_uri(entry)
    entries = read_looks(name.removesuffix(SUFFIX))
    mine = next((one for one in entries if str(one.number) == number), None)
    if mine is None:
        raise RegistryError(f"{entry}: no such look is on record")
    if MEASURED not in mine.tags:
        raise RegistryError(f"{entry}: nothing was measured at this look; evaluate first")
    look = Look(
        entry=entry,
        held_out=mine.held_out,
        number=_number(entries, mine, mine.held_out, mine.sketch),
        measured_by=mine.tags[MEASURED],
        sampling=mine.tags.get(SAMPLING),
    )
    return look, dict(mine.tags)


def keep_votes(entry: str, name: str, votes: Path) -> str:
    """Keep a file of votes on the answers of a look with the run that measured them.

    Args:
        entry: the look.
        name: of the collection; its earlier votes no longer count, and stay with the run.
        votes: file; its name tells its content apart.

    Returns:
        The MLflow run.

    Raises:
        RegistryError: nothing was measured at this look, or MLflow does not answer.
    """
    run_id = str(find_look(entry)[0].measured_by)
    with_retries(
        f"keeping the votes of {name}",
        lambda: mlflow_client().log_artifact(run_id, str(votes), _VOTES_FOLDER),
    )
    _set_tag(entry, VOTES + name, f"{run_id} {votes.name}")
    return run_id


def votes_digest(entry: str) -> str | None:
    """Return what changes with the votes on the answers of a look; None where there are none."""
    files = _vote_files(_tags(entry))
    return hashlib.sha256(" ".join(files).encode()).hexdigest()[:12] if files else None


def fetch_votes(entry: str, folder: Path) -> list[Path]:
    """Bring the files of votes on the answers of a look into a folder."""
    found = []
    for file in _vote_files(_tags(entry)):
        run_id, _, name = file.partition(" ")
        path = with_retries(
            f"reading the votes {name}",
            lambda run_id=run_id, name=name: mlflow_client().download_artifacts(  # type: ignore[misc]
                run_id, f"{_VOTES_FOLDER}/{name}", str(folder)
            ),
        )
        found.append(Path(path))
    return found


def take_round(entry: str) -> int:
    """Write down that these votes are decided with; return the how many-th ones they are."""
    tags, digest = _tags(entry), str(votes_digest(entry))
    rounds = tags.get(ROUNDS, "").split()
    if digest not in rounds:
        rounds.append(digest)
        _set_tag(entry, ROUNDS, " ".join(rounds))
    return rounds.index(digest) + 1


def rounds_taken(tags: Mapping[str, str]) -> int:
    """Return how many decisions with votes a look has had, by its tags."""
    return len(tags.get(ROUNDS, "").split())


def _vote_files(tags: Mapping[str, str]) -> list[str]:
    return [tags[key] for key in sorted(tags) if key.startswith(VOTES)]


def _tags(entry: str) -> dict[str, str]:
    name, number, _ = split_model_uri(entry)
    found = with_retries(
        f"reading {entry}", lambda: mlflow_client().get_model_version(name, number).tags
    )
    return dict(found)


def _set_tag(entry: str, key: str, value: str) -> None:
    name, number, _ = split_model_uri(entry)
    with_retries(
        f"tagging {entry}",
        lambda: mlflow_client().set_model_version_tag(name, number, key, value),
    )


def _number(entries: Sequence[Entry], mine: Entry, held_out: str, sketch: frozenset[int]) -> int:
    """Which look at this set an entry is; numbers that are missing were deleted, and count.

    Where the earlier looks together saw half of the set, each that saw any of it counts: what it
    showed of these prompts was not shown by those at others.
    """
    before = [entry for entry in entries if entry.number < mine.number]
    missing = mine.number - 1 - len(before)
    was_seen = _seen_together(sketch, {entry.sketch for entry in before}) >= _SAME_SET
    seen = {
        entry.draw
        for entry in before
        if entry.saw(held_out, sketch) or (was_seen and _overlap(sketch, entry.sketch) > 0)
    }
    return missing + len(seen - {mine.draw}) + 1


def _write(name: str, policy: ModelRef, run: StageRun, tags: Mapping[str, str]) -> None:
    client = mlflow_client()
    asked = f"name = '{name}' and tags.`{QUESTION}` = '{tags[QUESTION]}'"
    found = [_entry(version) for version in client.search_model_versions(asked)]
    if _same(found, tags[QUESTION], tags[SAMPLING]):
        return  # the answer to an earlier attempt was lost
    client.create_model_version(
        name,
        source=policy.uri if policy.registered else client.get_run(run.run_id).info.artifact_uri,
        run_id=None if policy.registered else run.run_id,
        tags=dict(tags),
        description=f"{policy.uri} on held-out prompts {tags[HELD_OUT][:12]}",
    )


def _open_ledger(name: str, project: str) -> None:
    text = (
        f"Every look of {project} at its held-out prompts, each version one, written before the "
        "first score is known. Evaluations write it; one that is deleted counts all the same."
    )
    ensure_registered_model(name, {"rlhf.kind": "looks"}, text)


def _entry(version: "ModelVersion") -> Entry:
    tags = dict(version.tags)
    number = int(version.version)
    sketch = frozenset(int(key, 16) for key in tags.get(SKETCH, "").split())
    # A version that somebody made by hand is a look at a set of its own.
    question = tags.get(QUESTION, f"unknown {number}")
    return Entry(number, question, tags.get(HELD_OUT, ""), sketch, tags)


def _sketch(prompts: Iterable[Key]) -> frozenset[int]:
    """The smallest hashes of a set: Broder (1997), "On the resemblance and containment"."""
    return frozenset(sorted({int.from_bytes(key[:8]) for key in prompts})[:_SKETCH_SIZE])


def _overlap(own: frozenset[int], other: frozenset[int]) -> float:
    """Estimate which part of a set is in the other: over the hashes both sketches reach."""
    if not own or not other:
        return 0.0
    # A full sketch knows nothing of hashes above its largest, so only below both may they be
    # compared; a sketch that is not full is the whole set, and two of such are compared whole.
    full = max(len(own), len(other)) >= _SKETCH_SIZE
    reach = min(max(own), max(other)) if full else max(*own, *other)
    reached = {key for key in own if key <= reach}
    return len(reached & other) / len(reached) if reached else 0.0


def _seen_together(own: frozenset[int], others: Iterable[frozenset[int]]) -> float:
    """Estimate which part of a set is in the union of the others.

    Each adds the part that those which reach further have not, over the hashes that it reaches.
    """
    part, known = 0.0, frozenset[int]()
    for other in sorted(others, key=_reach, reverse=True):
        reached = {key for key in own if key <= _reach(other)}
        part += len((reached & other) - known) / len(reached) if reached else 0.0
        known |= other
    return part


def _reach(sketch: frozenset[int]) -> int:
    """Up to which hash a sketch knows its set: one that is not full is the whole set."""
    return max(sketch) if len(sketch) >= _SKETCH_SIZE else 2**64
