"""Stages that cost nothing and hand on real records; put in place of the real ones."""

import hashlib
import json
from functools import cache
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages

import rlhf_core.adapters
import rlhf_core.stages
from rlhf_core.errors import RegistryError
from rlhf_core.schema import (
    DatasetRef,
    DatasetSplits,
    Estimate,
    EvaluationReport,
    GateResult,
    ModelRef,
    PromotionDecision,
    StageResult,
)
from rlhf_core.stages.promote import Promotion
from tests.flows.seam import SEAM

FILES = [
    name for name, field in DatasetSplits.model_fields.items() if field.annotation is DatasetRef
]

DATA_REPORT = {
    "inputs": {"preferences": {"rows": 1200, "kept": 1190, "set_aside": {"no_votes": 2, "tie": 8}}},
    "agreement": {
        "krippendorff_alpha": {"value": 0.4014, "low": 0.39, "high": 0.41},
        "careless": [{"annotator": "cyn", "careless": ["at_chance", "too_fast"]}],
    },
}


def digest(*parts):
    return hashlib.sha256("|".join(map(str, parts)).encode()).hexdigest()


@cache
def load_core():
    """Import all that could take a fake for the real function if it were imported beside one."""
    for package in (rlhf_core.adapters, rlhf_core.stages):
        for module in walk_packages(package.__path__, f"{package.__name__}."):
            import_module(module.name)


class FakeStages:
    """Counts its calls; ``verdicts`` and ``failures`` by stage decide how a stage ends."""

    def __init__(self, directory):
        self.directory = Path(directory)
        self.calls = []
        self.verdicts = {}
        self.failures = {}
        self.models = {}
        self.contexts = {}
        self.approvals = {}
        self.champion = None
        self.judges = {}
        self.compared = {}
        self.chooser = None
        self.base = digest("base")
        self.raw = digest("raw")
        self.kept = None
        """What the dataset that lies there was made from."""

    def install(self, monkeypatch):
        load_core()
        for module, names in SEAM.items():
            for name in names:
                monkeypatch.setattr(import_module(module), name, getattr(self, name))
        return self

    def check_role(self, uri, roles, why):
        if uri in self.models and self.models[uri].name.rpartition("-")[2] not in roles:
            raise RegistryError(f"{uri}: {why}")

    def check_inputs(self, config):
        pass

    def base_digest(self, model):
        return self.base

    def prepare_fingerprint(self, config):
        return self.raw

    def find_prepared(self, config):
        return self.read_splits(self.directory / "prepared") if self.kept == self.raw else None

    def look_up_model(self, uri):
        return self.resolve_model(uri)

    def ask_approval(self, uri):
        self.approvals[uri] = "ASKED"

    def record_approval(self, uri, decision, *, reviewer, comment, said_at):
        self.calls.append(f"approval {decision}")
        self.approvals[uri] = decision
        return decision, f"{decision} by {reviewer}: {comment}"

    def require_approval(self, uri, *, asked_for):
        if self.approvals.get(uri, None if asked_for else "PROMOTE") != "PROMOTE":
            raise RegistryError(f"{uri}: not approved")

    def keep_file(self, run_id, path, folder=""):
        return f"http://mlflow/{run_id}/{path.name}"

    def look_up_run(self, run_id):
        return f"http://mlflow/{run_id}", {"policy/kl": 1.5}

    def show_dataset(self, config, splits, context):
        return "http://mlflow/data-docs/index.html"

    def fetch_version(self, version):
        self.calls.append(f"fetch_version {version}")
        return self.read_splits(self.directory / version)

    def find_fetched(self, version):
        return None

    def check_server(self):
        self.calls.append("check_server")

    def write_report(self, directory):
        return directory / "report.html"

    def read_splits(self, directory):
        ref = {"num_rows": 9, "dvc_md5": "m", "git_revision": None, "sha256": digest("data")}
        return DatasetSplits(
            directory=directory,
            sha256=digest("data"),
            dvc_md5="d.dir",
            git_revision=None,
            report=directory / "report.json",
            **{name: DatasetRef(path=directory / f"{name}.jsonl", **ref) for name in FILES},
        )

    def warn_of_too_few(self, config, splits):
        pass

    def prepare_data(self, config):
        self._called("prepare")
        self.kept = self.raw
        splits = self.read_splits(self.directory / "prepared")
        splits.directory.mkdir(exist_ok=True)
        splits.report.write_text(json.dumps(DATA_REPORT))
        return splits

    def train_sft(self, config, splits, context, observer=None):
        return self._result("sft", context, splits.sha256, config.seed)

    def train_reward(self, config, splits, sft, context, role, observer=None):
        return self._result(role, context, splits.sha256, sft.sha256)

    def train_policy(
        self, config, splits, sft, reward, context, observer=None, *, scorers=None, judge=None
    ):
        self._called("policy")
        self.chooser = judge
        model = self._model("policy", context, sft.sha256, reward and reward.sha256)
        return StageResult.judged_later("policy", model, seconds=1.0, tracking_url="")

    def bar_for(self, policy, project):
        return None if self.champion == policy.uri else self.champion

    def judge_of(self, policy):
        return self.judges.get(policy)

    def evaluate_policy(self, config, splits, *, context, **models):
        self.compared = {role: model for role, model in models.items() if model is not None}
        self._called("evaluate")
        return self._outcome("evaluate", models["policy"])

    def promote_policy(self, config, result, context):
        self._called("promote")
        before = self.champion
        if result.verdict == "PROMOTE":
            self.champion = result.model.uri
        return Promotion(
            model=result.model.uri,
            verdict=result.verdict,
            moved=before != self.champion,
            champion=self.champion,
            previous_champion=None,
            reasons=(),
        )

    def resolve_model(self, uri, **_):
        if uri not in self.models:
            raise RegistryError(f"{uri}: not there")
        return self.models[uri]

    def _called(self, stage):
        self.calls.append(stage)
        failure = self.failures.pop(stage, None)
        if failure is not None:
            raise failure

    def _result(self, stage, context, *inputs):
        self.contexts[stage] = context
        self._called(stage)
        return self._outcome(stage, self._model(stage, context, *inputs))

    def _model(self, role, context, *inputs):
        uri = f"models:/rlhf-{role}/{1 + sum(role in known for known in self.models)}"
        model = ModelRef(
            name=f"rlhf-{role}",
            version=uri.rsplit("/", 1)[1],
            uri=uri,
            path=context.stage_directory(role) / "model",
            sha256=digest(role, *inputs),
            kind="causal",
            run_id="r",
        )
        self.models[uri] = model
        return model

    def _outcome(self, stage, model):
        verdict = self.verdicts.get(stage, "PROMOTE")
        estimate = Estimate(value=0.7, low=0.65, high=0.75, num_samples=300)
        gate = GateResult(
            gate=f"{stage}/quality",
            verdict=verdict,
            estimate=estimate,
            rule="lower bound >= 0.6",
            reason=f"{stage}/quality says {verdict}",
        )
        decision = PromotionDecision(
            stage=stage, model=model, verdict=verdict, results=(gate,), reasons=(gate.reason,)
        )
        report = EvaluationReport(stage=stage, model=model, metrics={f"{stage}/quality": estimate})
        return StageResult(
            stage=stage,
            model=model,
            report=report,
            decision=decision,
            seconds=1.0,
            tracking_url="sqlite:///mlflow.db/#/experiments/1/runs/r",
        )
