import pytest

from rlhf_core.schema.model_uri import (
    alias_uri,
    is_model_uri,
    split_model_uri,
    version_uri,
    without_scheme,
)


def test_what_is_put_together_is_taken_apart_again():
    assert version_uri("rlhf-sft", 3) == "models:/rlhf-sft/3"
    assert split_model_uri(version_uri("rlhf-sft", 3)) == ("rlhf-sft", "3", "")
    assert alias_uri("rlhf-sft", "champion") == "models:/rlhf-sft@champion"
    assert split_model_uri(alias_uri("rlhf-sft", "champion")) == ("rlhf-sft", "", "champion")


@pytest.mark.parametrize(
    ("reference", "parts"),
    [
        ("rlhf-sft/3", ("rlhf-sft", "3", "")),  # as servers call a model
        ("models:/rlhf-sft/3@champion", ("rlhf-sft", "3", "champion")),
        ("models:/", ("", "", "")),
    ],
)
def test_half_a_reference_is_taken_apart_too(reference, parts):
    assert split_model_uri(reference) == parts


def test_folders_are_no_references_to_the_registry():
    assert is_model_uri("models:/rlhf-sft@champion")
    assert not is_model_uri("models/rlhf-sft")
    assert without_scheme("models:/rlhf-sft@champion") == "rlhf-sft@champion"
    assert without_scheme("models/rlhf-sft") == "models/rlhf-sft"
