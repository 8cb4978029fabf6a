"""The demo, cut down to a base model and files so small that every stage takes about a second."""

from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
CONFIG = "tiny.yaml"
ROWS = {"comparisons": 120, "demonstrations": 48, "prompts": 48, "heldout_prompts": 24}
STAGES = ("prepare", "sft", "reward", "judge", "policy", "evaluate", "promote")
TRAINED = ("sft", "reward", "judge", "policy")

SETTINGS = {
    "model": {"base": "data/base", "max_length": 192},
    "data": {
        "preferences": {"path": "data/raw/comparisons.jsonl"},
        "demonstrations": {"path": "data/raw/demonstrations.jsonl"},
        "prompts": {
            "path": "data/raw/prompts.jsonl",
            "heldout_path": "data/raw/heldout_prompts.jsonl",
        },
        "votes": {"num_resamples": 80},
        "min_pairs": 10,
    },
    "sft": {"num_epochs": 1, "batch_size": 8, "checkpoint_every": 1},
    "reward": {"num_epochs": 1, "batch_size": 8, "checkpoint_every": 1},
    "policy": {
        "algorithm": "ppo",
        "num_iterations": 5,
        "critic_warmup_iterations": 1,
        "rollout_batch_size": 8,
        "num_epochs": 1,
        "num_minibatches": 2,
        "max_new_tokens": 8,
        "checkpoint_every": 1,
        # A model that knows nothing drifts as it likes; these tests are not about that.
        "kl_watch": {"max_kl_per_token": None},
    },
    "evaluation": {"num_prompts": 16, "num_resamples": 80, "max_new_tokens": 8},
    "gates": {
        "sft": [{"metric": "sft/heldout_nll", "at_most": 99.0, "min_samples": 1}],
        "reward": [{"metric": "reward/accuracy_over_length", "at_least": -0.999, "min_samples": 1}],
        "policy": [{"metric": "policy/kl", "at_least": -99.0, "min_samples": 1}],
        "reward_hacking": [],
    },
}


def make_tiny(folder, **changes):
    """Fill ``folder`` with settings, raw data and a base model of random weights."""
    (folder / "data/raw").mkdir(parents=True)
    for name, rows in ROWS.items():
        lines = (ROOT / f"data/raw/{name}.jsonl").read_text().splitlines(keepends=True)
        (folder / f"data/raw/{name}.jsonl").write_text("".join(lines[:rows]))
    write_base(folder / "data/base")
    (folder / CONFIG).write_text(yaml.safe_dump(SETTINGS | changes))


def weights_of(run):
    """The sha256 of each stage's weights, as they lie in a run's folder."""
    from rlhf_core.models.files import weights_sha256

    return {stage: weights_sha256(run / stage / "model") for stage in TRAINED}


class Workplace:
    """A folder with the tiny demo, MLflow on SQLite, and commands that can be killed."""

    def __init__(self, path, database, mortal, **changes):
        self.path, self.mortal = path, mortal
        make_tiny(path, **changes)
        (path / "mlflow.db").write_bytes(database.read_bytes())

    def carry_out(self, stage, run, **moment):
        """What a person types; repeating it goes on with the stage."""
        role = ("--role", "judge") if stage == "judge" else ()
        new = ("--new-run",) if stage in (*TRAINED[1:], "evaluate") else ()
        words = ("reward" if role else stage, CONFIG, "--run-id", run, *role, *new)
        if stage == "promote":
            words = ("promote", "models:/rlhf-policy/1")
        return self.mortal.rlhf(self.path, *words, **moment)

    def weights(self, run):
        return weights_of(self.path / "runs" / run)

    @property
    def client(self):
        """MLflow's client for this folder's database."""
        from mlflow import MlflowClient

        uri = f"sqlite:///{self.path / 'mlflow.db'}"
        return MlflowClient(tracking_uri=uri, registry_uri=uri)

    def start_over(self, stage, rounds):
        """Take away what would make a finished stage a matter of looking it up."""
        if stage == "prepare":
            for folder in (self.path / "data").glob("prepared*"):
                folder.rename(folder.with_name(f"round-{rounds}-{folder.name}"))
        elif stage == "promote":
            self.client.delete_registered_model_alias("rlhf-policy", "champion")


def write_base(folder):
    """Write a base model of random weights, one small layer, with the demo's tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    source = ROOT / "data/base"
    config = AutoConfig.from_pretrained(source)
    config.update(
        {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "head_dim": 16,
        }
    )
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:1]
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
