"""Expectations that Great Expectations does not bring. Importing this file loads the library."""

from typing import Any, Literal

import pandas as pd
from great_expectations.execution_engine import PandasExecutionEngine
from great_expectations.expectations.expectation import ColumnPairMapExpectation
from great_expectations.expectations.metrics.map_metric_provider import (
    ColumnPairMapMetricProvider,
    column_pair_condition_partial,
)


class TextsDiffer(ColumnPairMapMetricProvider):
    """Row by row: the two texts differ, white space at the ends aside."""

    condition_metric_name = "column_pair_values.texts_differ"
    condition_domain_keys = (
        "batch_id",
        "table",
        "column_A",
        "column_B",
        "row_condition",
        "condition_parser",
        "ignore_row_if",
    )
    condition_value_keys = ()

    @column_pair_condition_partial(engine=PandasExecutionEngine)  # type: ignore[untyped-decorator]
    def _pandas(cls, column_A: pd.Series, column_B: pd.Series, **_: Any) -> pd.Series:
        return column_A.str.strip() != column_B.str.strip()


class ExpectTextsToDiffer(ColumnPairMapExpectation):
    """Expect two text columns to differ in every row."""

    map_metric = "column_pair_values.texts_differ"
    ignore_row_if: Literal["neither"] = "neither"
    success_keys = ("ignore_row_if", "mostly")


class OneValuePerGroup(ColumnPairMapMetricProvider):
    """Row by row: all rows with this A have one and the same B."""

    condition_metric_name = "column_pair_values.one_value_per_group"
    condition_domain_keys = TextsDiffer.condition_domain_keys
    condition_value_keys = ()

    @column_pair_condition_partial(engine=PandasExecutionEngine)  # type: ignore[untyped-decorator]
    def _pandas(cls, column_A: pd.Series, column_B: pd.Series, **_: Any) -> pd.Series:
        return column_B.groupby(column_A).transform("nunique") <= 1


class ExpectOneValuePerGroup(ColumnPairMapExpectation):
    """Expect column B to be constant among rows that share column A: no leak, no ambiguous id."""

    map_metric = "column_pair_values.one_value_per_group"
    ignore_row_if: Literal["neither"] = "neither"
    success_keys = ("ignore_row_if", "mostly")
