"""Make the pictures of docs/walkthrough.md: ``python -m docs.screenshots``.

Starts Prefect, MLflow and workers in a new folder, then does in a headless Chromium what the page
tells a person to do: run the nightly deployment, retry a stage that was killed, approve, look at
the champion. The stages are real, on the tests' tiny model; ``--keep`` leaves the servers up.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

from tests.browser.pages import Prefect, open_page, open_version
from tests.flows.served import ROOT, Served
from tests.flows.tiny import CONFIG, make_tiny

IMAGES = ROOT / "docs/images"
DIES_BEFORE_EFFECT = 20
"""Of SFT: its process is killed between two checkpoints, see ``tests.flows.mortal``."""


def prepare(folder: Path, deaths: Path) -> Served:
    """Make the folder: the project's flows, the tiny demo of the tests, one death for SFT."""
    served = Served.prepare(
        folder,
        fake_stages=False,
        PYTHONPATH=f"{ROOT / 'tests/flows/mortal_site'}:{ROOT}",
        RLHF_TEST_DEATHS=str(deaths),
        OMP_NUM_THREADS="1",
        TZ="UTC",
    )
    make_tiny(folder, promotion={"approval": "person", "wait_hours": 72})
    (folder / "configs").unlink()
    (folder / "configs").mkdir()
    (folder / CONFIG).rename(folder / "configs/demo-approval.yaml")
    plan = {"at_effect": DIES_BEFORE_EFFECT, "others": []}
    (deaths / "sft").write_text(json.dumps(plan), encoding="utf-8")
    return served


def start(ui: Prefect) -> str:
    """Run the nightly deployment from its form; returns the run's id."""
    while ui.served.get("deployments/name/rlhf-pipeline/nightly")["status"] != "READY":
        time.sleep(1)  # its worker has only just been started
    ui.open_deployment("rlhf-pipeline/nightly")
    ui.shoot(IMAGES / "1-nightly.png")
    ui.open_form()
    ui.shoot(IMAGES / "2-run-form.png")
    return ui.submit()


def retry(ui: Prefect, run: str) -> None:
    """Press Retry, and wait until the pipeline asks for a person."""
    ui.open_run(run)
    ui.shoot(IMAGES / "3-failed.png")
    ui.retry(run)
    ui.rest()
    ui.served.wait(run, "PAUSED")
    ui.open_run(run)
    ui.shoot(IMAGES / "4-run-graph.png")


def show_artifacts(ui: Prefect) -> None:
    """Show what a stage publishes: progress, tables, links."""
    ui.open_run(ui.served.runs("rlhf-evaluate")[-1]["id"])
    ui.page.get_by_text("Artifacts", exact=True).click()
    ui.page.get_by_text("evaluate-result").last.click()
    ui.page.get_by_text("verdict").first.wait_for()
    ui.shoot(IMAGES / "5-artifact.png")


def approve(ui: Prefect, run: str) -> None:
    """Fill the Resume form in and submit it."""
    ui.open_run(run)
    form = ui.open_resume_form()
    ui.fill_resume_form(
        form, decision="PROMOTE", reviewer="the reviewer", comment="I have read the report."
    )
    ui.shoot(IMAGES / "6-approval.png")
    ui.press("Submit", within=form)
    ui.rest()
    ui.served.wait(run)
    ui.open_run(run)
    ui.shoot(IMAGES / "7-completed.png")


def take_pictures(served: Served) -> None:
    """Do everything the walkthrough tells, once."""
    with open_page() as page:
        ui = Prefect(page, served)
        run = start(ui)
        ui.rest()
        served.wait(run)
        retry(ui, run)
        show_artifacts(ui)
        approve(ui, run)
        open_version(page, served, "rlhf-policy", 1)
        ui.shoot(IMAGES / "8-champion.png")


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--folder", type=Path, default=Path("/srv/rlhf"), help="must not exist; pages show it"
    )
    parser.add_argument("--keep", action="store_true", help="leave the servers running")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as deaths:
        served = prepare(options.folder, Path(deaths))
        served.rlhf("up", "--prefect-port", "0", "--mlflow-port", "0")
        try:
            take_pictures(served)
        finally:
            if not options.keep:
                served.rlhf("down")


if __name__ == "__main__":
    main()
