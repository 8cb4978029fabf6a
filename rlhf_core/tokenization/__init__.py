"""Text to tensors: render, batches, collate."""

from rlhf_core.tokenization.batches import PreferenceBatch, TokenBatch
from rlhf_core.tokenization.examples import (
    TokenIds,
    TokenizedExample,
    TokenizedPair,
    TokenizedPrompt,
    TokenizedUnpaired,
    as_token_ids,
)
from rlhf_core.tokenization.load import (
    TemplateChoice,
    load_tokenizer,
    own_template,
    published_ends,
    read_template,
    token_ids,
    tokenizer_beside,
)
from rlhf_core.tokenization.pack import (
    group_by_prompt,
    pack_examples,
    pack_grouped_responses,
    pack_pairs,
    pack_prompts,
    pack_responses,
)
from rlhf_core.tokenization.render import Renderer, make_renderer
from rlhf_core.tokenization.rows import Rows, keep_rows
from rlhf_core.tokenization.runs import evenly

__all__ = [
    "PreferenceBatch",
    "Renderer",
    "Rows",
    "TemplateChoice",
    "TokenBatch",
    "TokenIds",
    "TokenizedExample",
    "TokenizedPair",
    "TokenizedPrompt",
    "TokenizedUnpaired",
    "as_token_ids",
    "evenly",
    "group_by_prompt",
    "keep_rows",
    "load_tokenizer",
    "make_renderer",
    "own_template",
    "pack_examples",
    "pack_grouped_responses",
    "pack_pairs",
    "pack_prompts",
    "pack_responses",
    "published_ends",
    "read_template",
    "token_ids",
    "tokenizer_beside",
]
