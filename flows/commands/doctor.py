"""`rlhf doctor`: look at everything a run needs, and say how to fix what is missing."""

import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from importlib import metadata
from pathlib import Path

from rlhf_core.errors import RlhfError
from rlhf_flows.commands.doctor_processes import check_processes
from rlhf_flows.commands.doctor_servers import check_prefect, check_supervisor
from rlhf_flows.commands.findings import Finding

MIN_FREE_GB = 5.0
CONSTRAINTS = Path("constraints.txt")
DISTRIBUTION = "rlhf-pipeline"


def examine(config: Path | None) -> tuple[Finding, ...]:
    """Check Python, packages, disk, tools, servers, workers, telemetry and, if given, settings."""
    return tuple(
        finding
        for check in (
            _python,
            _packages,
            _disk,
            _tools,
            _folders,
            _threads,
            lambda: _mlflow(config),
            check_prefect,
            check_supervisor,
            _permissions,
            _telemetry,
            lambda: _settings(config),
            lambda: check_processes(config),
            lambda: _engine(config),
        )
        for finding in check()
    )


def _python() -> Iterator[Finding]:
    yield Finding(
        what="python",
        healthy=sys.version_info >= (3, 11),
        found=f"{sys.version.split()[0]} at {sys.executable}",
        fix="install Python 3.11 or newer and run `make setup PYTHON=/path/to/python`",
    )


def _packages() -> Iterator[Finding]:
    """Look for what the project requires, and compare what is installed with the pinned set."""
    wrong = [f"{name} is missing" for name in _distributions() if _installed(name) is None]
    found = "all that is required; no constraints.txt here"
    if CONSTRAINTS.exists():
        lines = CONSTRAINTS.read_text(encoding="utf-8").splitlines()
        pins = dict(line.split(";")[0].strip().split("==") for line in lines if "==" in line)
        wrong += [
            f"{name} {installed} (pinned {version})"
            for name, version in pins.items()
            if (installed := _installed(name)) not in (None, version)
        ]
        found = f"all that is required, by the {len(pins)} pins of {CONSTRAINTS}"
    yield Finding(
        what="packages",
        healthy=not wrong,
        found=", ".join(wrong) or found,
        fix="make setup",
    )


def _distributions() -> Iterator[str]:
    """Yield the project itself and the names of what it requires, without its extras."""
    yield DISTRIBUTION
    if _installed(DISTRIBUTION) is None:
        return
    for requirement in metadata.requires(DISTRIBUTION) or ():
        name, _, marker = requirement.partition(";")
        if "extra" not in marker:
            yield re.split(r"[^\w.-]", name, maxsplit=1)[0]


def _installed(name: str) -> str | None:
    """Return the version without its build: torch is 2.13.0 whether it came as +cpu or not."""
    try:
        return metadata.version(name).partition("+")[0]
    except metadata.PackageNotFoundError:
        return None


def _disk() -> Iterator[Finding]:
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    yield Finding(
        what="disk",
        healthy=free >= MIN_FREE_GB,
        found=f"{free:.1f} GB free here",
        fix=f"free at least {MIN_FREE_GB:.0f} GB: old runs lie under runs/, artifacts under "
        "mlartifacts/",
    )


def _tools() -> Iterator[Finding]:
    for tool, fix in (
        ("git", "install git: the commit of every run is recorded"),
        ("dvc", "make setup, or pip install dvc: dataset versions are kept with it"),
    ):
        where = shutil.which(tool) or shutil.which(tool, path=str(Path(sys.executable).parent))
        yield Finding(what=tool, healthy=where is not None, found=where or "missing", fix=fix)


def _folders() -> Iterator[Finding]:
    for name in ("runs", "data/prepared", ".rlhf"):
        folder = Path(name)
        nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        yield Finding(
            what=f"folder {name}",
            healthy=os.access(nearest, os.W_OK),
            found="writable" if os.access(nearest, os.W_OK) else f"{nearest} is not writable",
            fix=f"chown or chmod {nearest}, or run from a directory you may write to",
        )


def _threads() -> Iterator[Finding]:
    """Says how many threads compute; more than there are cores wait for each other."""
    import joblib

    from rlhf_core.adapters.settings import load_settings, set_environment_defaults

    set_environment_defaults()
    settings, cores = load_settings(), joblib.cpu_count()
    chosen = settings.omp_num_threads
    healthy = chosen is None or not chosen.isdecimal() or int(chosen) <= cores
    threads = "one thread a physical core" if chosen is None else f"OMP_NUM_THREADS={chosen}"
    yield Finding(
        what="threads",
        healthy=healthy,
        found=f"{threads}, {cores} cores for this process, {settings.waiting_threads}",
        fix="unset OMP_NUM_THREADS, or set it to at most the number of cores",
    )


def _mlflow(config: Path | None = None) -> Iterator[Finding]:
    from rlhf_core.adapters.registry.access import check_access
    from rlhf_core.adapters.settings import load_settings, without_credentials
    from rlhf_core.adapters.tracking.tracking import check_server

    project, settings = _project(config), load_settings()
    where = without_credentials(settings.mlflow_tracking_uri)
    reached = _attempt(
        "mlflow", where, check_server, "start it, or set or unset MLFLOW_TRACKING_URI"
    )
    yield reached
    if not reached.healthy:
        return
    if not settings.embedded:
        yield _attempt(
            f"mlflow writes ({project})",
            "experiment, models and files",
            lambda: check_access(project, patience=0),
            "set what it names for commands and workers alike",
        )
    database = Path(settings.mlflow_tracking_uri.removeprefix("sqlite:///"))
    if not settings.embedded or database.stat().st_size:
        yield _releases(project)
        yield _required(project)
        yield _looks(project)


def _required(project: str) -> Finding:
    """Says which gates the project requires of every run."""
    from rlhf_core.adapters.registry.required_gates import requirement

    what = f"required gates ({project})"
    try:
        found = requirement(project)
    except RlhfError as error:
        fix = f"rlhf gates --require FILE --project {project}"
        return Finding(what=what, healthy=False, found=str(error), fix=fix)
    asked = "; ".join(gate for gates in found.gates.values() for gate in gates)
    by = f" (set by {found.set_by})" if found.set_by else ""
    return Finding(what=what, healthy=True, found=(asked or "none") + by)


def _looks(project: str) -> Finding:
    """Says how often the held-out prompts in use were looked at, and if their budget is used up."""
    from rlhf_core.adapters.registry.looks import sets_looked_at
    from rlhf_core.evaluation.gates import EXHAUSTED_WIDTH, RENEW, describe_look, width_at

    what = f"held-out prompts ({project})"
    try:
        looks = sets_looked_at(project)
    except RlhfError as error:
        return Finding(what=what, healthy=False, found=str(error), fix="fix MLflow first")
    if not looks:
        return Finding(what=what, healthy=True, found="not looked at yet")
    return Finding(
        what=what,
        healthy=width_at(looks[0]) < EXHAUSTED_WIDTH,
        found=f"last was {describe_look(looks[0])}",
        fix=RENEW,
    )


def _releases(project: str) -> Finding:
    """Says whether champions are one release, and what fixes it where they are not."""
    from rlhf_core.adapters.registry.release_state import release_state

    what = f"releases ({project})"
    try:
        state = release_state(project)
    except RlhfError as error:
        return Finding(what=what, healthy=False, found=str(error), fix="fix MLflow first")
    return Finding(what=what, healthy=state.healthy, found=state.found, fix=state.fix)


def _project(config: Path | None) -> str:
    """Return whose experiment and models are asked about; bad settings are reported elsewhere.

    Without settings it is the project that this folder's deployments run.
    """
    from rlhf_core.config import PipelineConfig, load_config
    from rlhf_flows.servers.pools import deployed_settings

    with suppress(RlhfError):
        if (settings := config or deployed_settings()) is not None:
            return load_config(settings).project
    return str(PipelineConfig.model_fields["project"].default)


def _permissions() -> Iterator[Finding]:
    """Says which functions and which code of models this environment lets settings load."""
    from rlhf_core.config import permissions

    for what, read in (
        ("functions settings may name", permissions.allowed_functions),
        ("code of models that may run", permissions.trusted_code),
    ):
        try:
            found, healthy = ", ".join(sorted(read())) or "none", True
        except RlhfError as error:
            found, healthy = str(error), False
        yield Finding(what=what, healthy=healthy, found=found, fix="see docs/security.md")


def _telemetry() -> Iterator[Finding]:
    """Names what a person has switched on; unset variables are switched off by every command."""
    from rlhf_core.adapters.settings import ENVIRONMENT_DEFAULTS, set_environment_defaults

    switched_on = [
        f"{name}={value}"
        for name, value in set_environment_defaults().items()
        if value != ENVIRONMENT_DEFAULTS[name]
    ]
    yield Finding(
        what="telemetry",
        healthy=not switched_on,
        found="off" if not switched_on else ", ".join(switched_on),
        fix="unset these variables: the project's own values switch telemetry off",
    )


def _settings(config: Path | None) -> Iterator[Finding]:
    if config is None:
        return

    def check() -> None:
        from rlhf_core.config import load_config
        from rlhf_core.stages.preflight import check_inputs

        check_inputs(load_config(config))

    yield _attempt(f"settings {config}", "data and base model are usable", check, "see README")


def _engine(config: Path | None) -> Iterator[Finding]:
    """Look at the server that samples, where the settings name one."""
    from rlhf_core.config import VllmRolloutsConfig, load_config

    rollouts = None
    with suppress(RlhfError):  # bad settings are reported elsewhere
        if config is not None:
            loaded = load_config(config)
            rollouts = loaded.policy.rollouts
    if not isinstance(rollouts, VllmRolloutsConfig):
        return
    from transformers import AutoConfig

    from rlhf_core.adapters.endpoints.vllm_sampler import FIRST_PATIENCE_SECONDS, VllmSampler
    from rlhf_core.tokenization.model_folder import loading_options

    try:
        # A server that loads weights for a run, or was left so, answers late or never.
        soon = {
            "timeout_seconds": FIRST_PATIENCE_SECONDS,
            "patience_seconds": FIRST_PATIENCE_SECONDS,
        }
        with closing(VllmSampler(rollouts.model_copy(update=soon))) as sampler:
            found, base = sampler.look(), loaded.model.base
            if Path(base).is_dir():  # one on the hub is not fetched for this
                options = loading_options(base, None)
                ours = AutoConfig.from_pretrained(base, **options).get_text_config()
                sampler.require_vocabulary(ours.vocab_size)
                found += f", {ours.vocab_size} tokens as {base}"
        healthy = True
    except (RlhfError, OSError, ValueError) as error:
        found, healthy = str(error), False
    yield Finding(what="rollouts", healthy=healthy, found=found, fix="see docs/ppo.md")


def _attempt(what: str, found: str, check: Callable[[], None], fix: str) -> Finding:
    try:
        check()
    except (RlhfError, ImportError) as error:
        return Finding(what=what, healthy=False, found=str(error), fix=fix)
    return Finding(what=what, healthy=True, found=found)
