"""A hundred damaged model folders: each is a model, or one line that names the folder."""

import json
import random
import shutil
from pathlib import Path

import pytest

from rlhf_core.config import ModelConfig
from rlhf_core.errors import RlhfError
from rlhf_core.stages.models.base_model import load_base

pytestmark = pytest.mark.nightly

BASE = Path(__file__).parents[2] / "data" / "base"
VALUES = [
    None,
    True,
    -1,
    0,
    10**30,
    1.5,
    "x",
    "",
    [],
    {},
    [1, "a"],
    {"a": None},
    "../..",
    "LlamaModel",
]


def damage(folder: Path, rng: random.Random) -> None:
    """Change one file as an interrupted copy, a wrong tool or a stray edit would."""
    path = rng.choice(sorted(folder.iterdir()))
    kind = rng.choice(["remove", "cut", "bytes", "empty", "folder", "value", "value", "value"])
    content = path.read_bytes()
    if kind == "value" and path.suffix == ".json":
        value = json.loads(content)
        place, key = value, rng.choice(sorted(value))
        while isinstance(place[key], dict) and place[key] and rng.random() < 0.7:
            place = place[key]
            key = rng.choice(sorted(place))
        if rng.random() < 0.3:
            del place[key]
        else:
            place[key] = rng.choice(VALUES)
        path.write_text(json.dumps(value))
    elif kind == "remove":
        path.unlink()
    elif kind == "folder":
        path.unlink()
        path.mkdir()
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "cut":
        path.write_bytes(content[: rng.randrange(len(content) + 1)])
    else:
        at = rng.randrange(len(content) + 1)
        path.write_bytes(content[:at] + rng.randbytes(8) + content[at + 8 :])


@pytest.mark.parametrize("seed", range(100))
def test_a_damaged_model_folder_is_one_line(tmp_path, seed):
    folder = tmp_path / "base"
    shutil.copytree(BASE, folder)
    damage(folder, random.Random(seed))
    try:
        load_base(ModelConfig(base=str(folder), max_length=192))
    except RlhfError as error:
        said = str(error)
        assert str(folder) in said
        assert len(said) < 3_000
