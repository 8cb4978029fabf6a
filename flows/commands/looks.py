"""What `rlhf data look` prints: the shape of a file, what comes of it, and the settings."""

import yaml

from rlhf_core.dataprep.sources.look import Found
from rlhf_core.schema import Comparison, Demonstration, Prompt, UnpairedExample
from rlhf_flows.commands.tables import show_line

_MAX_TEXT = 100


def show_found(found: Found) -> None:
    """Print the shape, what comes of it, some of it, and the settings to copy."""
    format_ = found.settings.get("format")
    show_line(f"shape: {found.shape}" + (f" (format {format_})" if format_ else ""))
    show_line(f"{found.rows:,} rows, {found.usable:,} usable: " + _summary(found))
    for reason, count in found.filtered.most_common():
        first = found.first_filtered.get(reason)
        show_line(f"filtered out: {count:,} {reason}" + (f"; the first: {first}" if first else ""))
    if found.num_undecided:
        show_line(
            f"ties alone: {found.num_undecided:,} comparisons; preparation filters out (tie) those "
            "on which no other row votes"
        )
    if found.reused_ids:
        name, (one, other) = next(iter(found.reused_ids.items()))
        show_line(
            "preparation would refuse this file: an id stands for several comparisons, whose votes "
            f"would be mixed: {len(found.reused_ids):,}, the first {name!r} (lines {one} and "
            f"{other}); give each comparison an id of its own"
        )
    _show_unread(found)
    for item in found.examples:
        _show_example(item)
    settings = yaml.safe_dump(found.settings, sort_keys=False, allow_unicode=True)
    lines = settings.splitlines()
    if found.section == "unpaired":  # a list of files
        lines = ["- " + lines[0], *("  " + line for line in lines[1:])]
    show_line("settings:")
    show_line(f"data:\n  {found.section}:\n" + "".join(f"    {line}\n" for line in lines))


def _show_unread(found: Found) -> None:
    """Print what of a file is not read, and what reading it takes for granted."""
    for column, count in sorted(found.unused_columns.items()):
        show_line(f"not read: column {column!r} of {count:,} rows")
    for column, (count, first) in sorted(found.unread_cells.items()):
        show_line(
            f"not read: {count:,} cells of column {column!r}, whose votes count without it; the "
            f"first: {first}"
        )
    for note in found.notes:
        show_line(f"taken for granted: {note}")


def _summary(found: Found) -> str:
    """Return what comes of a file."""
    if found.section == "unpaired":
        return f"labelled responses, {found.labels[True]:,} good and {found.labels[False]:,} bad"
    if found.section != "preferences":
        return f"{found.section}, no comparisons"
    wins = found.wins
    return (
        f"{found.num_comparisons:,} comparisons; votes for a {wins['a']:,}, for b {wins['b']:,},"
        f" ties {wins['tie']:,}"
    )


def _show_example(item: Comparison | UnpairedExample | Demonstration | Prompt) -> None:
    show_line(f"example, line {item.line}:" if isinstance(item, Comparison) else "example:")
    for turn in item.prompt:
        show_line(f"  {turn.role}: {_begin(turn.content)}")
    if isinstance(item, Demonstration):
        show_line(f"  -> {_begin(item.response)}")
    if isinstance(item, UnpairedExample):
        show_line(f"  -> {'good' if item.label else 'bad'}: {_begin(item.response)}")
    if not isinstance(item, Comparison):
        return
    for side, text in (("a", item.response_a), ("b", item.response_b)):
        votes = sum(vote.choice == side for vote in item.votes)
        show_line(f"  -> {side} ({votes} votes): {_begin(text)}")


def _begin(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _MAX_TEXT else line[: _MAX_TEXT - 3] + "..."
