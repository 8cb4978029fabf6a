import pytest

from rlhf_core.errors import DataError, ModelError
from rlhf_core.stages.preflight import check_inputs
from rlhf_core.stages.prepare import prepare_data


@pytest.fixture
def with_data(stage_config, tmp_path):
    """Settings whose raw file exists, with more said about the data."""
    (tmp_path / "raw.jsonl").touch()

    def make(**data):
        config = stage_config()
        raw = config.data.model_dump() | {"preferences": {"path": tmp_path / "raw.jsonl"}} | data
        return config.model_validate({**config.model_dump(), "data": raw})

    return make


def test_a_dataset_of_the_hub_is_not_looked_for_on_this_machine(with_data):
    check_inputs(with_data(preferences={"path": "hf://datasets/Anthropic/hh-rlhf", "format": "hh"}))


def test_a_published_version_needs_no_raw_file(with_data):
    check_inputs(with_data(preferences={"path": "gone.jsonl"}, version="data-v3"))


@pytest.mark.parametrize(
    ("data", "key"),
    [
        ({"preferences": {"path": "gone.jsonl"}}, "data.preferences.path"),
        ({"more_preferences": [{"path": "gone.jsonl"}]}, "data.more_preferences.0.path"),
        ({"demonstrations": {"path": "gone.jsonl"}}, "data.demonstrations.path"),
        ({"prompts": {"heldout_path": "gone.jsonl"}}, "data.prompts.heldout_path"),
        ({"prompts": {"production_path": "gone.jsonl"}}, "data.prompts.production_path"),
        ({"cleaning": {"contamination": ["gone.jsonl"]}}, "data.cleaning.contamination.0"),
    ],
)
def test_a_missing_file_is_named_with_its_key(with_data, tmp_path, monkeypatch, data, key):
    monkeypatch.chdir(tmp_path)
    for check in (check_inputs, prepare_data):
        with pytest.raises(DataError, match=f"gone.jsonl: no such file; {key} must name"):
            check(with_data(**data))


@pytest.mark.parametrize("tracked", ["raw/prompts.jsonl.dvc", "raw.dvc"])
def test_a_file_that_dvc_has_is_fetched_from_there(with_data, tmp_path, monkeypatch, tracked):
    """Tracked by itself, or with the folder it lies in."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "raw").mkdir()
    (tmp_path / tracked).touch()
    config = with_data(prompts={"path": "raw/prompts.jsonl"})
    with pytest.raises(DataError, match=f"prompts.jsonl: no such file; run `dvc pull {tracked}`"):
        prepare_data(config)


def test_a_base_model_too_short_for_max_length_is_found_before_the_preparation(with_data):
    config = with_data()
    longer = config.model_validate(
        {**config.model_dump(), "model": config.model.model_dump() | {"max_length": 10**6}}
    )
    with pytest.raises(ModelError, match=r"max_length is 1000000, but \S+ has \d+ positions"):
        check_inputs(longer)
