"""The prepared files, open for writing, and the columns the last validation looks at."""

from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO

import pyarrow as pa

from rlhf_core.dataprep.keys import DialogueKey
from rlhf_core.dataprep.measures.frames import FrameBuilder, excerpt
from rlhf_core.dataprep.split import Half, Side
from rlhf_core.schema import Demonstration, PreferencePair, Prompt, Record, UnpairedExample

FILE_NAMES = (
    "demonstrations_heldout",
    "demonstrations_train",
    "judge_heldout",
    "judge_train",
    "prompts_heldout",
    "prompts_train",
    "reward_heldout",
    "reward_train",
)
"""Prepared files in name order; each is ``<name>.jsonl``."""

UNPAIRED_FILES = ("unpaired_heldout", "unpaired_train")
"""There where ``data.unpaired`` names files; they come after the others in name order."""

PAIR_FILES = ("reward_train", "reward_heldout", "judge_train", "judge_heldout")
"""Those that hold preference pairs."""

PAIR_COLUMNS = pa.schema(
    [
        ("comparison_id", pa.string()),
        ("dialogue_key", pa.string()),
        ("half", pa.string()),
        ("chosen", pa.string()),
        ("rejected", pa.string()),
        ("probability", pa.float64()),
    ]
)
PROMPT_COLUMNS = pa.schema(
    [
        ("row_id", pa.string()),
        ("file", pa.string()),
        ("side", pa.string()),
        ("dialogue_key", pa.string()),
    ]
)


class PreparedFiles:
    """Writes records to the file of their side; used as a context manager."""

    def __init__(self, directory: Path, *, unpaired: bool = False) -> None:
        """Open the files in ``directory``: eight, and with ``unpaired`` those of such rows."""
        names = FILE_NAMES + (UNPAIRED_FILES if unpaired else ())
        self._stack = ExitStack()
        self._streams: dict[str, IO[bytes]] = {
            name: self._stack.enter_context((directory / f"{name}.jsonl").open("wb"))
            for name in names
        }
        self.num_rows = dict.fromkeys(names, 0)
        self.pairs = FrameBuilder(PAIR_COLUMNS)
        self.prompts = FrameBuilder(PROMPT_COLUMNS)

    def add_pair(self, pair: PreferencePair, dialogue: DialogueKey, half: Half, side: Side) -> None:
        """Write a preference pair."""
        self._write(f"{half}_{side}", pair, pair.comparison_id, dialogue, side)
        self.pairs.add(
            pair.comparison_id,
            dialogue.hex(),
            half,
            excerpt(pair.chosen),
            excerpt(pair.rejected),
            pair.probability,
        )

    def add_demonstration(self, item: Demonstration, dialogue: DialogueKey, side: Side) -> None:
        """Write a demonstration."""
        self._write(f"demonstrations_{side}", item, item.demonstration_id, dialogue, side)

    def add_unpaired(self, item: UnpairedExample, dialogue: DialogueKey, side: Side) -> None:
        """Write a response with its label."""
        self._write(f"unpaired_{side}", item, item.example_id, dialogue, side)

    def add_prompt(self, item: Prompt, dialogue: DialogueKey, side: Side) -> None:
        """Write a prompt."""
        self._write(f"prompts_{side}", item, item.prompt_id, dialogue, side)

    def _write(
        self, name: str, record: Record, row_id: str, dialogue: DialogueKey, side: Side
    ) -> None:
        self._streams[name].write(record.model_dump_json().encode() + b"\n")
        self.num_rows[name] += 1
        self.prompts.add(row_id, name, side, dialogue.hex())

    def __enter__(self) -> "PreparedFiles":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()
