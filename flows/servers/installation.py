"""Which code this machine runs, and where it works: every worker by its own clone or wheel.

A deployment names modules, and the digest of the code it was made from. The folder in which a run
works is the one its worker was started in, wherever that lies.
"""

from functools import lru_cache
from importlib import metadata
from pathlib import Path

import rlhf_core
from rlhf_core.adapters.datasets.versioning import git_revision
from rlhf_core.dataprep.manifest import code_digest
from rlhf_flows.engine.environment import worker_folder

STEP = "rlhf_flows.servers.installation.work_here"
"""The pull step by which a run of a deployment begins."""


def module_entrypoint(entrypoint: str) -> str:
    """Return an entry point as a module path, which every installation finds in its own code.

    ``flows/stages.py:sft_stage`` becomes ``rlhf_flows.stages.sft_stage``; a module path stays.
    """
    file, colon, function = entrypoint.partition(":")
    if not colon:
        return entrypoint
    module = file.removesuffix(".py").replace("/", ".")
    room, dot, rest = module.partition(".")
    return f"{'rlhf_flows' if room == 'flows' else room}{dot}{rest}.{function}"


@lru_cache(maxsize=1)
def installed_code() -> str:
    """Return a digest of the product's source files, the same for a clone and a wheel of it."""
    root = Path(rlhf_core.__file__).parent.parent
    packages = ("rlhf_flows", "rlhf_core")
    files = [path for package in packages for path in (root / package).rglob("*.py")]
    return code_digest(root, files)[:16]


def describe_code() -> str:
    """Return what a person knows the code by: version, and commit where it is a clone."""
    root = Path(rlhf_core.__file__).parent
    commit = git_revision(root)
    return f"{metadata.version('rlhf-pipeline')} at {commit[:10] if commit else root}"


def work_here(code: str, description: str) -> dict[str, str]:
    """Begin a deployed run: in the worker's folder, with code that is the deployment's.

    A run of other code is failed in one line and left. It would take files and references for what
    they are not.

    Args:
        code: digest of the code that the deployment was made from.
        description: what a person knows that code by.

    Returns:
        The folder, as Prefect's pull steps hand it on.
    """
    if code != installed_code():
        _refuse(
            f"this worker runs other code ({describe_code()}, in {worker_folder()}) than was "
            f"deployed ({description}); bring it to that version and start the worker again, or "
            "`rlhf deploy` from here; then Retry"
        )
    return {"directory": str(worker_folder())}


def _refuse(why: str) -> None:
    """Fail the run with a line that its page shows, and end this process without a traceback."""
    from uuid import UUID

    from prefect.client.orchestration import get_client
    from prefect.exceptions import Abort
    from prefect.runtime import flow_run
    from prefect.states import Failed

    with get_client(sync_client=True) as client:
        client.set_flow_run_state(UUID(str(flow_run.id)), Failed(message=why), force=True)
    raise Abort(why)
