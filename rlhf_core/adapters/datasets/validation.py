"""Great Expectations: suites in code over raw and prepared rows, answered in our own records."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rlhf_core.adapters.datasets import data_docs
from rlhf_core.schema import CheckResult, ValidationReport

if TYPE_CHECKING:
    import pandas as pd

Severity = Literal["block", "warn"]
_MAX_IDS = 1_000
"""Failing ids a check names; the count is always complete."""


@dataclass(frozen=True, slots=True)
class Check:
    """One expectation, by a name people read, and whether it stops the run."""

    name: str
    severity: Severity
    expectation: Any


def validate_raw_comparisons(
    frame: "pd.DataFrame", tolerance: float, docs: Path | None = None
) -> ValidationReport:
    """Check comparisons as read.

    Args:
        frame: one row a comparison, with the columns of ``dataprep.intake.RAW_COLUMNS``.
        tolerance: share of rows that may be unusable (they are filtered out later, one by one)
            before the file as a whole counts as broken.
        docs: folder for the Data Docs page; None writes none.
    """
    return _validate("raw comparisons", frame, _raw_checks(1.0 - tolerance), docs)


def validate_prepared_pairs(frame: "pd.DataFrame", docs: Path | None = None) -> ValidationReport:
    """Check the pairs about to be published: every row must hold."""
    return _validate("prepared pairs", frame, _prepared_checks(), docs)


def validate_prepared_prompts(frame: "pd.DataFrame", docs: Path | None = None) -> ValidationReport:
    """Check that over all prepared files no dialogue is on both sides of the split."""
    return _validate("prepared prompts", frame, _prompt_checks(), docs)


def _raw_checks(mostly: float) -> Sequence[Check]:
    import great_expectations.expectations as gxe

    from rlhf_core.adapters.datasets.expectations import ExpectOneValuePerGroup, ExpectTextsToDiffer

    return (
        Check("rows exist", "block", gxe.ExpectTableRowCountToBeBetween(min_value=1)),
        Check(
            "an id stands for one comparison",
            "block",
            ExpectOneValuePerGroup(column_A="comparison_id", column_B="content"),
        ),
        *(
            Check(
                f"{column} is not blank",
                "block",
                gxe.ExpectColumnValuesToMatchRegex(column=column, regex=r"\S", mostly=mostly),
            )
            for column in ("prompt", "response_a", "response_b")
        ),
        Check(
            "responses differ",
            "block",
            ExpectTextsToDiffer(column_A="response_a", column_B="response_b", mostly=mostly),
        ),
        Check(
            "there is a vote",
            "block",
            gxe.ExpectColumnValuesToBeBetween(column="num_votes", min_value=1, mostly=mostly),
        ),
        Check(
            "no annotator votes twice on one comparison",
            "warn",
            gxe.ExpectColumnValuesToBeBetween(column="repeated_votes", max_value=0),
        ),
    )


def _prepared_checks() -> Sequence[Check]:
    import great_expectations.expectations as gxe

    from rlhf_core.adapters.datasets.expectations import ExpectOneValuePerGroup, ExpectTextsToDiffer

    return (
        Check("rows exist", "block", gxe.ExpectTableRowCountToBeBetween(min_value=1)),
        Check("ids are unique", "block", gxe.ExpectColumnValuesToBeUnique(column="comparison_id")),
        *(
            Check(
                f"{column} is not blank",
                "block",
                gxe.ExpectColumnValuesToMatchRegex(column=column, regex=r"\S"),
            )
            for column in ("chosen", "rejected")
        ),
        Check(
            "chosen differs from rejected",
            "block",
            ExpectTextsToDiffer(column_A="chosen", column_B="rejected"),
        ),
        Check(
            "the winner is more probable than not",
            "block",
            gxe.ExpectColumnValuesToBeBetween(column="probability", min_value=0.5, max_value=1),
        ),
        Check(
            "a dialogue is in one half only",
            "block",
            ExpectOneValuePerGroup(column_A="dialogue_key", column_B="half"),
        ),
    )


def _prompt_checks() -> Sequence[Check]:
    import great_expectations.expectations as gxe

    from rlhf_core.adapters.datasets.expectations import ExpectOneValuePerGroup

    return (
        Check("rows exist", "block", gxe.ExpectTableRowCountToBeBetween(min_value=1)),
        Check(
            "a dialogue is on one side only",
            "block",
            ExpectOneValuePerGroup(column_A="dialogue_key", column_B="side"),
        ),
    )


def _validate(
    suite: str, frame: "pd.DataFrame", checks: Sequence[Check], docs: Path | None
) -> ValidationReport:
    """Run all checks at once. The frame's first column names the rows that fail."""
    import great_expectations as gx
    from great_expectations.data_context.types.base import ProgressBarsConfig
    from great_expectations.datasource.fluent import PandasDatasource

    for name in ("great_expectations", "great_expectations.data_context.types.base"):
        logging.getLogger(name).setLevel(logging.WARNING)
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False, metric_calculations=False)
    for check in checks:
        check.expectation.meta = {"check": check.name}
        check.expectation.description = check.name
    # Whole before the context gets it, which writes out its settings at each change of it.
    source = PandasDatasource(name="rows")
    source.add_dataframe_asset(suite).add_batch_definition_whole_dataframe("all")
    asset = context.data_sources.add_pandas(source).get_asset(suite)
    batch = asset.get_batch_definition("all").get_batch({"dataframe": frame})
    id_column = str(frame.columns[0])
    result = batch.validate(
        gx.ExpectationSuite(name=suite, expectations=[check.expectation for check in checks]),
        result_format={
            "result_format": "COMPLETE",
            "unexpected_index_column_names": [id_column],
        },
    )
    if docs is not None:
        data_docs.write_page(docs, suite, result)
    # Great Expectations orders its results by column, not as asked.
    results: list[Any] = list(result.results)
    by_name = {found.expectation_config.meta["check"]: found for found in results}
    return ValidationReport(
        suite=suite,
        checks=tuple(_to_record(check, by_name[check.name], id_column) for check in checks),
    )


def _to_record(check: Check, result: Any, id_column: str) -> CheckResult:
    """Translate one result; an exception inside an expectation is a failure that says so."""
    outcome = result.result
    crashed = [
        str(info.get("exception_message")).splitlines()[0]
        for info in _exceptions(result.exception_info)
        if info.get("raised_exception")
    ]
    rows = outcome.get("unexpected_index_list") or []
    ids = tuple(dict.fromkeys(str(row[id_column]) for row in rows))
    num_failing = int(outcome.get("unexpected_count") or 0)
    detail = "; ".join(crashed) if crashed else _observed(outcome, num_failing)
    return CheckResult(
        name=check.name,
        passed=bool(result.success),
        severity=check.severity,
        num_failing=num_failing,
        detail=detail,
        failing_ids=ids[:_MAX_IDS],
    )


def _exceptions(info: dict[str, Any]) -> list[dict[str, Any]]:
    """Great Expectations gives one exception record, or one for every metric."""
    return [info] if "raised_exception" in info else list(info.values())


def _observed(outcome: dict[str, Any], num_failing: int) -> str:
    if "element_count" in outcome:
        return f"{num_failing} of {outcome['element_count']} rows fail"
    return f"observed {outcome.get('observed_value')}"
