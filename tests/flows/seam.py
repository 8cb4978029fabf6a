"""Where flows call the core: what a test puts a fake in place of, by module."""

SEAM = {
    "rlhf_core.stages.prepare": ("prepare_data", "prepare_fingerprint", "find_prepared"),
    "rlhf_core.stages.evaluation.held_out": ("warn_of_too_few",),
    "rlhf_core.stages.preparation.dataset": ("read_splits",),
    "rlhf_core.stages.preflight": ("check_inputs",),
    "rlhf_core.stages.models.renderers": ("base_digest",),
    "rlhf_core.stages.sft": ("train_sft",),
    "rlhf_core.stages.reward": ("train_reward",),
    "rlhf_core.stages.policy": ("train_policy",),
    "rlhf_core.stages.evaluate": ("evaluate_policy",),
    "rlhf_core.stages.promote": ("promote_policy", "bar_for"),
    "rlhf_core.stages.versions.versions": ("fetch_version", "find_fetched"),
    "rlhf_core.stages.versions.dataset_page": ("show_dataset",),
    "rlhf_core.stages.evaluation.report": ("write_report",),
    "rlhf_core.adapters.registry.registry": ("check_role", "resolve_model", "look_up_model"),
    "rlhf_core.adapters.registry.decision": ("judge_of",),
    "rlhf_core.adapters.tracking.tracking": ("check_server", "keep_file", "look_up_run"),
    "rlhf_core.adapters.registry.approval": ("ask_approval", "record_approval", "require_approval"),
}
USED_WHOLE = (
    "rlhf_core.adapters",
    "rlhf_core.stages.evaluation.report",
    "rlhf_core.stages.promote",
    "rlhf_core.stages.versions",
)
"""Modules of which flows use more than the functions above."""
