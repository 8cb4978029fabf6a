"""What a person does in the pages of Prefect and MLflow, in a headless Chromium."""

import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.flows.served import FINAL, until

CHROMIUMS = ("/usr/bin/chromium", "chromium", "chromium-browser", "google-chrome-stable")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
PATIENCE_MILLISECONDS = 300_000
SETTLE_MILLISECONDS = 1_000
"""The run graph and the forms draw themselves after their data came. A run's page draws its graph
sixty times a second for as long as it is open, without a GPU by a core of the machine."""


def find_chromium():
    """Path of an installed Chromium, or None."""
    return next(filter(None, map(shutil.which, CHROMIUMS)), None)


def require_chromium():
    """Skip the test where there is no browser to look with."""
    pytest.importorskip("playwright.sync_api")
    if find_chromium() is None:
        pytest.skip("no Chromium is installed: apt-get install chromium")


@contextmanager
def open_page(width=1280, height=900):
    """A page in a browser of its own; ``page.strangers`` lists what it asked of other hosts."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=find_chromium(), args=list(FLAGS), timeout=PATIENCE_MILLISECONDS
        )
        page = browser.new_page(viewport={"width": width, "height": height})
        page.set_default_timeout(PATIENCE_MILLISECONDS)
        page.strangers = []
        page.on("request", lambda request: _note_stranger(page, request.url))
        try:
            yield page
        finally:
            browser.close()


def _note_stranger(page, url):
    if not url.startswith(("http://127.0.0.1:", "data:", "blob:")):
        page.strangers.append(url)


class Prefect:
    """The Prefect UI of a served folder."""

    def __init__(self, page, served):
        self.page, self.served = page, served

    def press(self, name, within=None):
        """Press a button by what stands on it."""
        (within or self.page).get_by_role("button", name=name, exact=True).click()

    def settle(self):
        self.page.wait_for_timeout(SETTLE_MILLISECONDS)

    def shoot(self, path, **options):
        """Keep a picture."""
        self.settle()
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=path, **options)

    def rest(self):
        """Leave the page while nothing is to be seen on it: it draws itself all the time."""
        self.page.goto("about:blank")

    def read(self, text):
        """Wait until the text stands on the page."""
        says = "text => document.body.innerText.includes(text)"
        self.page.wait_for_function(says, arg=text, polling=200)

    def open_deployment(self, name):
        found = self.served.get(f"deployments/name/{name}")
        self.page.goto(f"{self.served.servers.prefect_url}/deployments/deployment/{found['id']}")
        self.page.get_by_role("button", name="Run", exact=True).wait_for()

    def open_form(self):
        """Run, Custom run."""
        self.press("Run")
        self.page.get_by_text("Custom run").click()
        self.page.get_by_role("button", name="Submit").wait_for()

    def submit(self):
        """Submit the form; returns the run's id.

        The note that links to the run moves and goes: a person is quick enough, a script is not.
        """
        known = self._asked_for()
        self.press("Submit")
        self.page.get_by_text("scheduled to start").first.wait_for()
        (run,) = self._asked_for() - known
        self.rest()
        return run

    def _asked_for(self):
        """Runs of the pipeline that a person began, whenever they are or were to start."""
        runs = self.served.runs("rlhf-pipeline")
        return {run["id"] for run in runs if not run["auto_scheduled"]}

    def open_run(self, run):
        self.page.goto(f"{self.served.servers.prefect_url}/runs/flow-run/{run}")
        self.page.get_by_text("Artifacts", exact=True).wait_for()
        self.page.locator("canvas").first.wait_for()

    def retry(self, run):
        """Retry, and yes, really; returns once the server has heard it."""
        self.press("Retry")
        self.press("Retry", within=self.page.locator(".p-modal"))
        until(lambda: self.served.run(run)["state"]["type"] not in FINAL, lambda: "the retry")
        self.rest()

    def open_resume_form(self):
        """Resume; returns the form."""
        self.press("Resume")
        form = self.page.locator(".p-modal")
        form.get_by_text("Reviewer").wait_for()
        return form

    def fill_resume_form(self, form, *, decision, reviewer, comment):
        """Choose the decision from its list and write the rest."""
        form.locator(".p-select-button__control").press("ArrowDown")
        self.page.locator(".p-select-option", has_text=decision).click()
        for box, text in zip(form.locator("textarea").all(), (reviewer, comment), strict=True):
            box.fill(text)

    def resume(self, form):
        """Submit the form; returns once the server has heard it."""
        with self.page.expect_response(lambda answer: answer.url.endswith("/resume")):
            self.press("Submit", within=form)
        self.rest()


def open_version(page, served, name, version):
    """The page of a model version in MLflow, in "Model training" mode, without the assistant."""
    for key, value in (
        ("mlflow.workflowType_v1", '"machine_learning"'),
        ("mlflow.assistant.fab.autoOpenedOnFirstLoad_v1", "true"),
        ("mlflow.assistant.panelOpen_v1", "false"),
    ):
        page.add_init_script(f"localStorage.setItem({key!r}, {value!r})")
    page.goto(f"{served.servers.mlflow_url}/#/models/{name}/versions/{version}")
    page.get_by_text("champion").first.wait_for()
    page.wait_for_timeout(SETTLE_MILLISECONDS)
