"""Prefect's ``flow`` without the form that nobody asked for.

Prefect makes a flow's form, the schema of its parameters, in every process that imports the flow,
and reads it in none: `prefect deploy` makes it again. For our settings that takes longer than all
the rest of the import.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

import prefect.flows
from prefect import Flow
from prefect.utilities.callables import ParameterSchema

P = ParamSpec("P")
R = TypeVar("R")


def flow(
    *, name: str, flow_run_name: str | Callable[[], str]
) -> Callable[[Callable[P, R]], Flow[P, R]]:
    """Make a function a flow, as Prefect's decorator of the same name does."""

    def define(function: Callable[P, R]) -> Flow[P, R]:
        with _no_form():
            return Flow(function, name=name, flow_run_name=flow_run_name)

    return define


@contextmanager
def _no_form() -> Iterator[None]:
    names = vars(prefect.flows)
    make = names["parameter_schema"]
    names["parameter_schema"] = lambda function: ParameterSchema()
    try:
        yield
    finally:
        names["parameter_schema"] = make
