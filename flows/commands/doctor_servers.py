"""The part of `rlhf doctor` that looks at servers: the supervisor here, Prefect wherever it is."""

from collections.abc import Iterator

from rlhf_core.adapters.settings import load_settings, without_credentials
from rlhf_core.errors import RlhfError
from rlhf_flows.commands.findings import Finding
from rlhf_flows.engine.environment import HEARTBEAT_VARIABLE, SILENT_RUNS
from rlhf_flows.engine.prefect_server import PrefectLostError, ask
from rlhf_flows.servers.installation import STEP, describe_code, installed_code, module_entrypoint
from rlhf_flows.servers.pools import read_pools
from rlhf_flows.servers.servers import LOGS, read_servers

RESTART = "rlhf down, then rlhf up"


def check_supervisor() -> Iterator[Finding]:
    """Look at what `rlhf up` started from this directory; nothing started is nothing wrong."""
    try:
        servers = read_servers()
    except (OSError, ValueError) as error:
        problem = f"its record cannot be read: {type(error).__name__}"
        yield Finding(what="supervisor", healthy=False, found=problem, fix=RESTART)
        return
    if servers is None:
        yield Finding(what="supervisor", healthy=True, found="nothing was started here")
        return
    alive = servers.supervisor.find() is not None
    found = (
        f"process {servers.supervisor.pid}" if alive else "it was killed; nobody restarts what dies"
    )
    yield Finding(what="supervisor", healthy=alive, found=found, fix=RESTART)
    for name, child in servers.children.items():
        alive = child.find() is not None
        yield Finding(
            what=f"process {name}",
            healthy=alive,
            found=f"process {child.pid}" if alive else "it has ended",
            fix=f"wait for the supervisor to restart it, or see {LOGS / name}.log; then {RESTART}",
        )


def check_prefect() -> Iterator[Finding]:
    """Look at the configured Prefect server: pools, deployments, and workers that listen."""
    url = load_settings().prefect_api_url
    if url is None:
        yield Finding(
            what="prefect", healthy=True, found="one for each command: PREFECT_API_URL is not set"
        )
        return
    try:
        ask(url, "work_pools/filter", {"limit": 1})
    except RlhfError as error:
        fix = "start it (`rlhf up`), or unset PREFECT_API_URL"
        lost = isinstance(error, PrefectLostError)
        yield Finding(
            what="prefect",
            healthy=False,
            found=str(error),
            fix=fix if lost else "set what it names for commands and workers alike",
        )
        return
    yield Finding(what="prefect", healthy=True, found=without_credentials(url))
    try:
        yield from _check_pools(url)
        yield from _check_deployments(url)
        yield from _check_heartbeats(url)
    except RlhfError as error:
        yield Finding(what="prefect", healthy=False, found=str(error), fix="rlhf deploy")


def _check_pools(url: str) -> Iterator[Finding]:
    known = {pool["name"] for pool in ask(url, "work_pools/filter", {})}
    for pool in read_pools().limits:
        if pool not in known:
            yield Finding(
                what=f"pool {pool}", healthy=False, found="it does not exist", fix="rlhf deploy"
            )
            continue
        workers = ask(url, f"work_pools/{pool}/workers/filter", {})
        online = [worker["name"] for worker in workers if worker["status"] == "ONLINE"]
        yield Finding(
            what=f"pool {pool}",
            healthy=bool(online),
            found=f"workers: {', '.join(online)}" if online else "no worker listens",
            fix="rlhf up, or "
            f"`python -m rlhf_flows.servers.patched_prefect worker start --pool {pool}`",
        )


def _check_deployments(url: str) -> Iterator[Finding]:
    found = ask(url, "deployments/filter", {})
    made = {f"{module_entrypoint(item['entrypoint'])} {item['name']}": item for item in found}
    missing = [name for name in read_pools().deployments if module_entrypoint(name) not in made]
    yield Finding(
        what="deployments",
        healthy=not missing,
        found="all of prefect.yaml" if not missing else f"missing: {', '.join(missing)}",
        fix="rlhf deploy",
    )
    steps = [step.get(STEP) for item in made.values() for step in item.get("pull_steps") or ()]
    other = {step["description"] for step in steps if step and step["code"] != installed_code()}
    yield Finding(
        what="code",
        healthy=not other,
        found=f"deployed: {', '.join(sorted(other))}; here: {describe_code()}, which is other code"
        if other
        else f"{describe_code()}, as deployed",
        fix="check out what was deployed, or `rlhf deploy` from here",
    )


def _check_heartbeats(url: str) -> Iterator[Finding]:
    """Look whether runs speak up often enough for the automation that takes silent ones for dead.

    What a deployment says counts for its runs, else what its worker was started with.
    """
    named = {"automations": {"name": {"any_": [SILENT_RUNS]}}}
    watching = [item for item in ask(url, "automations/filter", named) if item["enabled"]]
    if not watching:
        return
    within = min(item["trigger"]["within"] for item in watching)
    seldom = []
    for item in ask(url, "deployments/filter", {}):
        variables = item.get("job_variables") or {}
        seconds = (variables.get("env") or {}).get(HEARTBEAT_VARIABLE)
        # A module where `rlhf deploy` wrote it, a file where `prefect deploy` did.
        if str(item["entrypoint"]).startswith(("rlhf_flows.", "flows.", "flows/")) and (
            seconds is None or 2 * float(seconds) > within
        ):
            seldom.append(f"{item['name']} of {item['entrypoint']}: {seconds or 'not said'}")
    yield Finding(
        what="heartbeats",
        healthy=not seldom,
        found=f"runs that are silent for {within:.0f} s are marked crashed; "
        + (f"heartbeat of {'; '.join(seldom)}" if seldom else "all send theirs in time"),
        fix=f"rlhf deploy: every deployment carries {HEARTBEAT_VARIABLE} then",
    )
