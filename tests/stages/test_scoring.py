import re
from types import SimpleNamespace

import pytest

from rlhf_core.stages.models.scoring import readable_ids

TURNS = SimpleNamespace(control_pattern=re.compile(r"<\|bos\|>|<\|eos\|>"))
RENDERER = SimpleNamespace(turns=TURNS, response_ids=lambda text: text)


@pytest.mark.parametrize(
    "text", ["Nine.", "<|eos|>Nine.", "Ni<|b<|bos|>os|>ne.", "Nine.<|b<|e<|bos|>os|>os|>"]
)
def test_spelled_out_control_tokens_are_taken_out_until_none_is_left(text):
    assert readable_ids(RENDERER, text) == "Nine."
