"""Gates that one cause holds, with the same numbers, are told to people in one line."""

from collections.abc import Callable, Hashable, Iterable

from rlhf_core.schema import GateResult, Verdict


def reasons_of(results: Iterable[GateResult]) -> list[tuple[Verdict, str]]:
    """Return verdict and reason of each result; those that want the same samples are one.

    It stands where the first of them stood. What is recorded of each gate is its own.
    """
    told = []
    for alike, gates in _gathered(results, _samples_wanted):
        first = alike[0]
        reason = first.reason
        if len(gates) > 1 and first.estimate is not None:
            reason = (
                f"{len(gates)} gates want {first.min_samples} samples and there are "
                f"{first.estimate.num_samples}: {', '.join(gates)}."
            )
        told.append((first.verdict, reason))
    return told


def _samples_wanted(result: GateResult) -> Hashable:
    if result.estimate is None or result.min_samples is None:
        return None
    there, wanted = result.estimate.num_samples, result.min_samples
    return (there, wanted) if there < wanted else None


_SEVERAL = {
    "pass": "about {samples} samples in place of {there} would pass {num} gates, if their values "
    "stay: {gates}",
    "reject": "about {samples} samples in place of {there} would reject the model by {num} gates, "
    "if their values stay: {gates}",
    "measure": "{num} gates want at least {samples} samples that can be measured: {gates}",
}


def forecasts_of(results: Iterable[GateResult]) -> list[str]:
    """Return what would decide the results that hold; gates of which the same is said are one."""
    told = []
    for alike, gates in _gathered((one for one in results if one.needed), _forecast):
        first = alike[0]
        line = first.needed
        if len(gates) > 1 and first.forecast is not None:
            line = _SEVERAL[first.forecast.outcome].format(
                samples=first.forecast.samples,
                there=first.forecast.there,
                num=len(gates),
                gates=", ".join(gates),
            )
        told.append(line)
    return told


def _forecast(result: GateResult) -> Hashable:
    return result.forecast


def _gathered(
    results: Iterable[GateResult], cause_of: Callable[[GateResult], Hashable]
) -> Iterable[tuple[list[GateResult], list[str]]]:
    """Group results by cause, where there is one.

    Returns:
        Results, and the names of their gates: two gates on one metric share one.
    """
    found: dict[Hashable, list[GateResult]] = {}
    for place, result in enumerate(results):
        cause = cause_of(result)
        found.setdefault(("alone", place) if cause is None else cause, []).append(result)
    return [(alike, list(dict.fromkeys(one.gate for one in alike))) for alike in found.values()]
