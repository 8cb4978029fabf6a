"""The part of `rlhf doctor` that looks at servers: the keeper here, and Prefect wherever it is."""

from collections.abc import Iterator

import requests

from flows.findings import Finding
from flows.pools import read_pools
from flows.prefect_server import ENTRY, ask, problem_of, refuses
from flows.servers import LOGS, read_servers
from rlhf_core.adapters.settings import load_settings, without_credentials
from rlhf_core.errors import RlhfError

RESTART = "make down, then make up"


def check_keeper() -> Iterator[Finding]:
    """Look at what `rlhf up` started from this directory; nothing started is nothing wrong."""
    try:
        servers = read_servers()
    except (OSError, ValueError) as error:
        problem = f"its record cannot be read: {type(error).__name__}"
        yield Finding(what="keeper", healthy=False, found=problem, mend=RESTART)
        return
    if servers is None:
        yield Finding(what="keeper", healthy=True, found="nothing was started here")
        return
    alive = servers.keeper.find() is not None
    found = f"process {servers.keeper.pid}" if alive else "it was killed; nobody restarts what dies"
    yield Finding(what="keeper", healthy=alive, found=found, mend=RESTART)
    for name, child in servers.children.items():
        alive = child.find() is not None
        yield Finding(
            what=f"process {name}",
            healthy=alive,
            found=f"process {child.pid}" if alive else "it has ended",
            mend=f"wait for the keeper to restart it, or see {LOGS / name}.log; then {RESTART}",
        )


def check_prefect() -> Iterator[Finding]:
    """Look at the configured Prefect server: pools, deployments, and workers that listen."""
    url = load_settings().prefect_api_url
    if url is None:
        yield Finding(
            what="prefect", healthy=True, found="one for each command: PREFECT_API_URL is not set"
        )
        return
    where = without_credentials(url)
    if problem := problem_of(url):
        yield Finding(
            what="prefect",
            healthy=False,
            found=f"{where} {problem}",
            mend="start it (`make up`), or unset PREFECT_API_URL",
        )
        return
    yield Finding(what="prefect", healthy=True, found=where)
    try:
        yield from _check_pools(url)
        yield from _check_deployments(url)
    except (requests.RequestException, RlhfError) as error:
        found = without_credentials(str(error))
        yield Finding(what="prefect", healthy=False, found=found, mend=_mend(error))


def _mend(error: Exception) -> str:
    if isinstance(error, requests.RequestException) and refuses(error):
        return ENTRY
    return "rlhf deploy"


def _check_pools(url: str) -> Iterator[Finding]:
    known = {pool["name"] for pool in ask(url, "work_pools/filter", {})}
    for pool in read_pools().limits:
        if pool not in known:
            yield Finding(
                what=f"pool {pool}", healthy=False, found="it does not exist", mend="rlhf deploy"
            )
            continue
        workers = ask(url, f"work_pools/{pool}/workers/filter", {})
        online = [worker["name"] for worker in workers if worker["status"] == "ONLINE"]
        yield Finding(
            what=f"pool {pool}",
            healthy=bool(online),
            found=f"workers: {', '.join(online)}" if online else "no worker listens",
            mend=f"make up, or `python -m flows.mended_prefect worker start --pool {pool}`",
        )


def _check_deployments(url: str) -> Iterator[Finding]:
    made = {f"{item['entrypoint']} {item['name']}" for item in ask(url, "deployments/filter", {})}
    missing = [name for name in read_pools().deployments if name not in made]
    yield Finding(
        what="deployments",
        healthy=not missing,
        found="all of prefect.yaml" if not missing else f"missing: {', '.join(missing)}",
        mend="rlhf deploy",
    )
