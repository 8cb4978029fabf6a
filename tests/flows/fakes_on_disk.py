"""Fake stages whose memory is the working directory, so that several processes share it."""

import json
import logging
import time

from rlhf_core.schema import ModelRef
from tests.flows.fakes import FakeStages

trainer = logging.getLogger("rlhf_core.trainers.fake")


class StageBroke(Exception):
    pass


class FakesOnDisk(FakeStages):
    """``fail-<stage>``: fails once, the file is gone then. ``slow-<stage>``: takes its seconds.
    ``verdict-<stage>``: what its gate says. Every call is a line of ``calls.txt``.
    """

    def __init__(self, directory):
        super().__init__(directory)
        for path in directory.glob("verdict-*"):
            self.verdicts[path.name.removeprefix("verdict-")] = path.read_text().strip()

    def train_sft(self, config, splits, context, observer=None):
        result = super().train_sft(config, splits, context)
        observer.step("sft", 1, 2, {"sft/loss": 0.5})
        return result

    def ask_approval(self, uri):
        self._write_approval(uri, decision="ASKED")

    def record_approval(self, uri, decision, *, reviewer, comment, said_at):
        self._write_approval(uri, decision=decision, reviewer=reviewer, comment=comment)
        return super().record_approval(
            uri, decision, reviewer=reviewer, comment=comment, said_at=said_at
        )

    def require_approval(self, uri, *, asked_for):
        path = self.directory / "approval.json"
        if path.exists():
            self.approvals[uri] = json.loads(path.read_text())["decision"]
        super().require_approval(uri, asked_for=asked_for)

    def _write_approval(self, uri, **answer):
        (self.directory / "approval.json").write_text(json.dumps({"uri": uri, **answer}))

    def resolve_model(self, uri, **_):
        path = self._card(uri)
        if path.exists():
            return ModelRef.model_validate_json(path.read_text())
        return super().resolve_model(uri)

    def _model(self, role, context, *inputs):
        model = super()._model(role, context, *inputs)
        for uri in (model.uri, f"models:/rlhf-{role}@candidate"):
            self._card(uri).write_text(model.model_dump_json())
        return model

    def _card(self, uri):
        return self.directory / f"model-{uri.replace('/', '_')}.json"

    def _called(self, stage):
        with (self.directory / "calls.txt").open("a") as calls:
            calls.write(f"{stage}\n")
        trainer.info("stage=%s step=1 of=2 loss=0.5", stage)
        slow = self.directory / f"slow-{stage}"
        if slow.exists():
            time.sleep(float(slow.read_text()))
        failing = self.directory / f"fail-{stage}"
        if failing.exists():
            failing.unlink()
            raise StageBroke(f"{stage} broke")
