"""Whether an evaluation may count: who judges, and on what, had no part in what is judged."""

import csv
from collections.abc import Iterable
from itertools import chain

from rlhf_core.adapters.registry.versions import find_version, upstream_uris
from rlhf_core.config import PipelineConfig
from rlhf_core.dataprep.cleaning.near_dialogues import NEAR_DUPLICATES, require_tag
from rlhf_core.errors import RegistryError
from rlhf_core.schema import DatasetSplits, ModelRef, Prompt
from rlhf_core.storage.records import iterate_records


def require_topics(config: PipelineConfig, splits: DatasetSplits) -> None:
    """Refuse an evaluation by topics of a tag that no prompt has, before hours go into one.

    Raises:
        DataError: says which tags there are.
    """
    key = config.evaluation.topics
    if key is None or key == NEAR_DUPLICATES:
        return
    files = (splits.prompts_heldout, splits.prompts_train)
    require_tag(chain.from_iterable(iterate_records(file, Prompt) for file in files), key)


def require_independent_judge(
    judge: ModelRef, policy: ModelRef | None, reward: ModelRef | None, splits: DatasetSplits
) -> None:
    """Refuse a judge that the policy was optimised against, or that was not trained as one.

    Args:
        judge: who is to decide.
        policy: what is judged; the registry knows what it was optimised against. None: one that
            is in training.
        reward: the reward model that this evaluation was given; None after DPO.
        splits: an AI judge whose votes are among the data is what the policy was optimised against.

    Raises:
        RegistryError: says which model it is and what to do.
    """
    optimised = {reward.uri: reward.sha256} if reward else {}
    if policy is not None and policy.registered:
        used = upstream_uris(policy.uri).get("reward")
        optimised |= {used: find_version(used).tags.get("rlhf.sha256", "")} if used else {}
    for one in judge.members or (judge,):
        for uri, sha256 in optimised.items():
            if one.sha256 == sha256:
                whose = policy.uri if policy else "the policy"
                raise RegistryError(
                    f"the judge {one.uri} is {uri}, the reward model {whose} was optimised "
                    "against; its word proves nothing. Give a judge: "
                    "`rlhf reward CONFIG --role judge`"
                )
        if one.kind == "endpoint" and one.uri in _voters(splits):
            raise RegistryError(
                f"the judge {one.uri} voted on pairs of {splits.directory}, which the policy "
                "learns from: its word on what it rewarded proves nothing. Name another in "
                f"evaluation.judge, or leave its votes out (data.votes.exclude: [{one.uri}])"
            )
        _require_trained_as_judge(one)


def _voters(splits: DatasetSplits) -> set[str]:
    """Who voted on the dataset's pairs."""
    # What prepares data loads pandas: half a second, in every process of a training.
    from rlhf_core.stages.preparation.report import ANNOTATORS

    path = splits.directory / ANNOTATORS
    if not path.is_file():
        return set()
    with path.open(newline="", encoding="utf-8") as file:
        return {row["annotator"] for row in csv.DictReader(file)}


def _require_trained_as_judge(judge: ModelRef) -> None:
    if judge.registered:
        stage = find_version(judge.uri).tags.get("rlhf.stage")
        if stage != "judge":
            raise RegistryError(
                f"{judge.uri} was trained as {stage or 'something unknown'}, not as judge, on the "
                "half of the preferences that policies learn from. Give a judge: "
                "`rlhf reward CONFIG --role judge`"
            )


def require_own_reference(policy: ModelRef, sft: ModelRef) -> None:
    """Refuse to compare a policy with another SFT model than the one it set out from.

    A weak one would make any policy look good, and its KL would be from somewhere else.

    Raises:
        RegistryError: says which one belongs to the policy.
    """
    used = upstream_uris(policy.uri).get("sft") if policy.registered else None
    if used and find_version(used).tags.get("rlhf.sha256") != sft.sha256:
        raise RegistryError(
            f"{policy.uri} was optimised from {used} and cannot be compared with {sft.uri}; "
            f"give `--sft {used}`"
        )


def doubts_about_data(splits: DatasetSplits, models: Iterable[ModelRef]) -> tuple[str, ...]:
    """Say which models may have trained on prompts that ``splits`` holds out.

    What is held out depends on the rule of the split alone, not on the version of the dataset.
    """
    doubts = []
    for model in models:
        tags = find_version(model.uri).tags if model.registered else {}
        trained_on = tags.get("rlhf.dataset_sha256")
        same_rule = splits.split and tags.get("rlhf.dataset_split") == splits.split
        if trained_on is not None and trained_on != splits.sha256 and not same_rule:
            way_out = (
                " evaluation.judge names another." if tags.get("rlhf.stage") == "judge" else ""
            )
            doubts.append(
                f"{model.uri} was trained on dataset {trained_on[:12]}, which was split "
                f"by another rule than {splits.sha256[:12]}; what is held out here may "
                f"have trained it.{way_out}"
            )
    return tuple(doubts)


def doubts_about_champion(policy: ModelRef, champion: ModelRef | None) -> tuple[str, ...]:
    """Say so where the candidate is the champion over again: there is nothing to promote."""
    if champion is None or policy.sha256 != champion.sha256:
        return ()
    return (f"{policy.uri} has the very weights of the champion {champion.uri}.",)
