"""Rebuild what the demo ships: ``python -m rlhf_core.demo.build raw|base``."""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from rlhf_core.demo.raw import RAW_SEED, write_raw


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse ``arguments`` and build the raw files or the base model."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    raw = commands.add_parser("raw", help="write demonstrations, comparisons and prompts")
    raw.add_argument("--output", type=Path, default=Path("data/raw"))
    raw.add_argument("--seed", type=int, default=RAW_SEED)
    base = commands.add_parser("base", help="train the tokenizer and pretrain the base model")
    base.add_argument("--output", type=Path, default=Path("data/base"))
    base.add_argument("--seed", type=int, default=0)
    base.add_argument("--num-threads", type=int, default=1)
    base.add_argument("--num-documents", type=int, default=None, help="fewer for a quick trial")
    settings = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if settings.command == "raw":
        write_raw(settings.output, settings.seed)
        return
    from rlhf_core.demo.pretrain import DEFAULT_DOCUMENTS, build_base

    num_documents = settings.num_documents or DEFAULT_DOCUMENTS
    build_base(
        settings.output,
        seed=settings.seed,
        num_documents=num_documents,
        num_threads=settings.num_threads,
    )


if __name__ == "__main__":
    main()
