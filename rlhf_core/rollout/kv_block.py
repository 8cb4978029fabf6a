"""The key-value cache of the decode loop: one block, allocated once, that rows can leave."""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache, CacheLayerMixin


@dataclass
class _Window:
    """Where the layers read and write; one object, shared by all of them."""

    num_rows: int
    """Live rows; they are the first of the block."""
    num_columns: int
    start: int = 0
    """First column any live row uses."""
    column: int = 0
    """Column the next token is written to."""
    prompt: tuple[Tensor, Tensor, Tensor] | None = None
    """[K] each: packed token to read, row and column to put its keys; None while decoding."""


class _BlockLayer(CacheLayerMixin):
    """Keys and values of one layer: [rows, heads, columns, head size]."""

    is_sliding = False

    def __init__(self, window: _Window) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.window = window
        self.states: tuple[Tensor, Tensor]

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        rows, columns = self.window.num_rows, self.window.num_columns
        # Zeros, not garbage: a masked column still meets a zero weight, and 0 * NaN is NaN. Both in
        # the precision of the values: autocast rounds keys to it in any case, for every product.
        self.keys, self.values = self.states = (
            value_states.new_zeros((rows, key_states.shape[1], columns, key_states.shape[3])),
            value_states.new_zeros((rows, value_states.shape[1], columns, value_states.shape[3])),
        )
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *_args: object, **_kwargs: object
    ) -> tuple[Tensor, Tensor]:
        window = self.window
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        keys, values = self.states
        if window.prompt is not None:
            # Attention over the prompts takes the packed keys as they are; the block keeps a copy
            # of them, row by row, for decoding.
            tokens, rows, columns = window.prompt
            keys[rows, :, columns] = key_states[0].transpose(0, 1)[tokens].to(keys.dtype)
            values[rows, :, columns] = value_states[0].transpose(0, 1)[tokens]
            return key_states, value_states
        keys[: window.num_rows, :, window.column] = key_states[:, :, 0]
        values[: window.num_rows, :, window.column] = value_states[:, :, 0]
        # A view and not a copy: every layer reads all of it at every token.
        seen = (slice(window.num_rows), slice(None), slice(window.start, window.column + 1))
        return keys[seen], values[seen]

    def move_rows(self, source: Tensor, target: Tensor) -> None:
        # Columns to the left nobody reads, those to the right are written before they are read.
        columns = slice(self.window.start, self.window.column)
        for states in self.states:
            states[target, :, columns] = states[source, :, columns]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        return self.window.column - self.window.start

    def get_max_length(self) -> int:
        return self.window.num_columns


class KvBlock(Cache):
    """Keys and values of a batch, prompts right-aligned so that every step writes one column.

    Used in two phases: ``begin_prompts`` before the forward pass over the packed prompts, then
    ``begin_decoding``; after each forward pass over one token per live row, ``advance``.
    """

    def __init__(
        self, config: PreTrainedConfig, prompt_lengths: Tensor, max_new_tokens: int
    ) -> None:
        """Plan a block; memory is taken when the first keys arrive and tell their size.

        Args:
            config: of the model; tells the number of layers.
            prompt_lengths: [B] int64 on the CPU.
            max_new_tokens: columns after the longest prompt.
        """
        longest = int(prompt_lengths.max())
        self.window = _Window(len(prompt_lengths), longest + max_new_tokens)
        self.prompt_end = longest
        self.starts = longest - prompt_lengths
        before_start = torch.arange(self.window.num_columns) < self.starts[:, None]
        self.bias = torch.zeros(before_start.shape).masked_fill(before_start, -torch.inf)
        num_layers = config.get_text_config().num_hidden_layers
        self.blocks = [_BlockLayer(self.window) for _ in range(num_layers)]
        super().__init__(layers=[*self.blocks])

    def begin_prompts(self, offsets: Tensor, device: torch.device) -> None:
        """Send the keys of packed prompts to the rows they belong to.

        Args:
            offsets: [B] int64 on the CPU, where each row's prompt begins among the packed tokens;
                rows with the same prompt may share one.
            device: of the model.
        """
        lengths = self.prompt_end - self.starts
        rows = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
        # Place of each token within its own prompt: its number among all, less where its row began.
        ends = lengths.cumsum(0)
        positions = torch.arange(int(ends[-1])) - (ends - lengths)[rows]
        places = (offsets[rows] + positions, rows, self.starts[rows] + positions)
        self.window.prompt = tuple(place.to(device) for place in places)  # type: ignore[assignment]
        self.bias = self.bias.to(device)

    def begin_decoding(self) -> None:
        """Leave the prompt phase: from now on one token per live row arrives."""
        self.window.prompt = None
        self.window.column = self.prompt_end
        self.window.start = int(self.starts.min())

    def next_positions(self) -> Tensor:
        """[B, 1] int64: position of the token that each live row reads next."""
        return (self.window.column - self.starts)[:, None]

    def mask(self) -> Tensor:
        """[B, 1, 1, T] float: 0 where a live row has keys, the next token's included; else -inf."""
        window = self.window
        return self.bias[:, None, None, window.start : window.column + 1]

    def advance(self) -> None:
        """Count the column just written as seen."""
        self.window.column += 1

    def keep_rows(self, kept: Tensor) -> Tensor:
        """Drop all live rows but ``kept``: each hole is filled by one of the last rows.

        Args:
            kept: [K] int64 on the CPU, ascending indices of live rows.

        Returns:
            [K] int64: which old row now lies at each new index.
        """
        # As few rows move as have to: the live ones must be the first of the block, in any order.
        count = len(kept)
        order = torch.arange(count)
        holes = order[~torch.isin(order, kept)]
        movers = kept[kept >= count]
        order[holes] = movers
        if len(holes):
            device = self.bias.device
            # A layer that reads the keys of another one never got any of its own.
            for layer in (block for block in self.blocks if block.is_initialized):
                layer.move_rows(movers.to(device), holes.to(device))
        self.window.num_rows = count
        self.starts = self.starts[order]
        self.bias = self.bias[order.to(self.bias.device)]
        if count:
            self.window.start = int(self.starts.min())
        return order
