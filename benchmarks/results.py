"""Keep what was measured in ``results.json`` and write ``RESULTS.md`` from it.

python benchmarks/results.py
"""

import json
import statistics
from collections.abc import Callable

from goals import goal_table
from sides import HERE, machine

PATH = HERE / "results.json"
Values = dict
TITLES = {
    "sft": "SFT step",
    "reward": "Reward-model step",
    "dpo": "DPO step",
    "ppo": "PPO iteration",
    "grpo": "GRPO iteration",
    "head": "Memory of the output head",
    "scaling": "Growth of an SFT step",
    "processes": "Several processes against one, on the demo",
    "processes_wall": "Two processes against two threads",
    "threads": "How threads wait, in a step of SFT",
}
COMMANDS = {
    "sft": "python benchmarks/compare.py sft",
    "reward": "python benchmarks/compare.py reward",
    "dpo": "python benchmarks/compare.py dpo",
    "ppo": "python benchmarks/ppo.py",
    "grpo": "python benchmarks/grpo.py",
    "head": "python benchmarks/head.py",
    "scaling": "python benchmarks/scaling.py",
    "processes": "python benchmarks/processes.py",
    "processes_wall": "python benchmarks/processes.py --wall",
    "threads": "python benchmarks/threads.py",
}


def keep(section: str, row: str, values: Values) -> None:
    """Replace one row of a section, say what it is, and write the page again."""
    found = read()
    found.setdefault(section, {"rows": {}})["rows"][row] = {
        **values,
        "machine": machine(values.get("threads", 1)),
    }
    PATH.write_text(json.dumps(found, indent=1) + "\n")
    print(row, json.dumps(values), flush=True)
    write_page(found)


def read() -> dict[str, dict]:
    """Return everything measured so far."""
    return json.loads(PATH.read_text()) if PATH.exists() else {}


def spread(ratios: list[float]) -> str:
    """Median of the rounds, the lowest and the highest."""
    return f"**{statistics.median(ratios):.2f}x** ({min(ratios):.2f}-{max(ratios):.2f})"


def seconds_and_memory(values: Values) -> list[str]:
    """Return the cells that every comparison has."""
    return [
        spread(values["ratios"]),
        f"{len(values['ratios'])}",
        f"{values['wall_ratio']:.2f}x",
        f"{values['peer_seconds']:.2f} -> {values['our_seconds']:.2f} s",
        f"{values['peer_mb']:,.0f} -> {values['our_mb']:,.0f} MB "
        f"(**{values['our_mb'] / values['peer_mb']:.2f}x**)",
        f"{values['load']:.1f}",
    ]


COMMON = (
    "setting of TRL",
    "ours",
    "times faster (spread)",
    "rounds",
    "by the wall clock",
    "processor time",
    "peak memory",
    "load",
)


def supervised_row(name: str, values: Values) -> list[str]:
    return [
        *name.split(" | "),
        *seconds_and_memory(values),
        f"{values['tokens_per_second']:,.0f}",
        f"{values['over_floor']:.2f}x",
        f"{values['loss_gap']:.0e}",
    ]


def ppo_row(name: str, values: Values) -> list[str]:
    over = values["over_floor"]
    return [
        *name.split(" | "),
        *seconds_and_memory(values),
        f"{values['peer_tokens_per_second']:.0f} -> {values['tokens_per_second']:.0f}",
        _shares(values["peer_shares"]) + " -> " + _shares(values["our_shares"]),
        " / ".join(f"{over[name]:.1f}x" for name in ("generate", "score", "update")),
    ]


def _shares(shares: dict[str, float]) -> str:
    return " / ".join(f"{shares[name]:.0%}" for name in ("generate", "score", "update"))


def head_row(name: str, values: Values) -> list[str]:
    return [name, f"{values['mb']:,.0f} MB", f"{values['cpu']:.2f} s", f"{values['loss']:.4f}"]


def scaling_row(name: str, values: Values) -> list[str]:
    return [
        name.split(" | ")[0],
        f"{values['rows']:,}",
        f"{values['tokens']:,.0f}",
        f"{values['parameters'] / 1e6:.1f}M",
        f"{values['vocabulary']:,}",
        f"{values['seconds']:.2f} s",
        f"{values['seconds'] / values['floor_seconds']:.2f}x",
        f"{values['peak_mb']:,.0f} MB",
        f"{values['state_mb']:,.0f} MB",
    ]


COMPARED = ("loss", "gradient norm", "KL", "score or margin")


def processes_row(name: str, values: Values) -> list[str]:
    cells = [*name.split(" | "), str(values["steps"])]
    if "weights" not in values:
        cells += ["-"] * (len(COMPARED) + 3)
    else:
        cells += [_difference(values[column]) for column in COMPARED]
        began = "never"
        if values["first"] is not None:
            began = f"{values['first']}: {values['first_metric']}"
            if values.get("other_responses") is not None:
                began += f"; other responses from {values['other_responses']}"
        cells += [began, _difference(values["weights"]), _difference(values["weights_relative"])]
    seconds = ("step_seconds", "processor_seconds", "wall_seconds")
    return [*cells, *(f"{values[one]:.2f}" for one in seconds), f"{values['others']:.0%}"]


def _difference(value: float | None) -> str:
    if value is None:
        return ""
    return "same bits" if value == 0 else f"{value:.1e}"


def processes_wall_row(name: str, values: Values) -> list[str]:
    middle = (f"{statistics.median(values[one]):.2f} s" for one in ("one", "two"))
    cells = [name, spread(values["ratios"]), f"{len(values['ratios'])}", *middle]
    return [*cells, f"{values['others']:.0%}"]


def threads_row(name: str, values: Values) -> list[str]:
    seconds = (f"{values[one]:.2f} s" for one in ("wall", "slowest", "processor"))
    cells = [*name.split(" | "), spread(values["ratios"]), f"{len(values['ratios'])}", *seconds]
    return [*cells, f"{values['stolen']:.0%}"]


SUPERVISED = (
    (*COMMON, "our tokens/s", "time over the floor", "loss differs by"),
    supervised_row,
)
PPO = (
    (
        *COMMON,
        "response tokens/s",
        "share of generation / scoring / update",
        "time over the floor: generation / scoring / update",
    ),
    ppo_row,
)
TABLES: dict[str, tuple[tuple[str, ...], Callable[[str, Values], list[str]]]] = {
    "sft": SUPERVISED,
    "reward": SUPERVISED,
    "dpo": SUPERVISED,
    "ppo": PPO,
    "grpo": PPO,
    "head": (("logits", "memory added", "processor time", "loss"), head_row),
    "scaling": (
        (
            "grows",
            "rows of data",
            "tokens of a step",
            "parameters",
            "vocabulary",
            "step",
            "over the floor",
            "peak memory",
            "of it weights, gradients, moments",
        ),
        scaling_row,
    ),
    "processes": (
        (
            "stage",
            "trained by",
            "steps",
            *COMPARED,
            "beyond 1e-5 from step",
            "a weight",
            "all weights",
            "seconds of a step",
            "processor seconds of the command",
            "wall seconds",
            "cores taken by others",
        ),
        processes_row,
    ),
    "processes_wall": (
        (
            "stage",
            "two processes are faster (spread)",
            "rounds",
            "a step, two threads",
            "a step, two processes",
            "cores taken by others",
        ),
        processes_wall_row,
    ),
    "threads": (
        (
            "model",
            "busy processes beside it",
            "threads that wait",
            "faster than one thread (spread)",
            "rounds",
            "a step, middle",
            "slowest",
            "processor time",
            "taken by other machines",
        ),
        threads_row,
    ),
}


def table(columns: tuple[str, ...], rows: list[list[str]]) -> list[str]:
    """Return a Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return ["| " + " | ".join(cells) + " |" for cells in lines]


def section(name: str, entry: dict) -> list[str]:
    """Lines of one section: the command, the machines, the table."""
    columns, to_row = TABLES[name]
    rows = {row: values for row, values in entry["rows"].items() if not row.startswith("note: ")}
    machines = list(dict.fromkeys(values["machine"] for values in rows.values()))
    where = "; ".join(f"({number}) {name}" for number, name in enumerate(machines, 1))
    cells = [
        [*to_row(row, values), str(machines.index(values["machine"]) + 1)]
        for row, values in rows.items()
    ]
    lines = [f"## {TITLES[name]}", "", f"`{COMMANDS[name]}` on {where}.", ""]
    lines += table((*columns, "machine"), cells)
    notes = [values["text"] for row, values in entry["rows"].items() if row.startswith("note: ")]
    return [*lines, *(line for note in notes for line in ("", note)), ""]


def write_page(found: dict[str, dict]) -> None:
    """Write ``RESULTS.md``."""
    lines = [
        "# Results",
        "",
        "Written by `python benchmarks/results.py`; how to read it: README.md.",
        "",
    ]
    lines += ["## Goals", "", *table(*goal_table(found)), ""]
    for name in TITLES:
        if name in found:
            lines += section(name, found[name])
    (HERE / "RESULTS.md").write_text("\n".join(lines).rstrip() + "\n")


if __name__ == "__main__":
    write_page(read())
