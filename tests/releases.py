"""Releases in a real registry, without any training, and processes that fight over them."""

import itertools
import multiprocessing
import os
import random
import signal
import socket
from contextlib import contextmanager

import pytest

ROLES = ("sft", "reward", "judge", "policy")
PROJECT = "rlhf"
WRITES = ("set_", "delete_", "create_")
CALLS = (*WRITES, "get_", "search_")


def register_release(client, *, without=(), verdicts=None, project=PROJECT, run=None):
    """Register one version of each role, all of them past their gates; returns role to URI."""
    made = {}
    for role in ROLES:
        if role in without:
            continue
        name = f"{project}-{role}"
        if not client.search_registered_models(f"name = '{name}'"):
            client.create_registered_model(name)
        tags = {"rlhf.stage": role, "rlhf.sha256": f"{role}-{len(made)}"}
        tags["rlhf.verdict"] = (verdicts or {}).get(role, "PROMOTE")
        if run:
            tags["rlhf.run_id"] = run
        if role == "policy":
            tags |= {f"rlhf.upstream.{part}": uri for part, uri in made.items()}
        version = client.create_model_version(name, source="s3://nowhere/model", tags=tags)
        made[role] = f"models:/{name}/{version.version}"
    return made


def champions(client, alias="champion", project=PROJECT):
    """Role to the URI that an alias points at; roles without one are left out."""
    models = client.search_registered_models(f"name LIKE '{project}-%'")
    named = {model.name: model.aliases for model in models}
    found = {}
    for role in ROLES:
        name = f"{project}-{role}"
        if alias in named.get(name, ()):
            found[role] = f"models:/{name}/{named[name][alias]}"
    return found


@contextmanager
def killed_before_any_alias(gone=False):
    """Let a promotion end where its move is recorded and no alias has moved.

    Args:
        gone: its process is known to have ended; otherwise that is this one.
    """

    def kill(*_):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rlhf_core.stages.promote.apply_move", kill)
        if gone:
            this = f"{socket.gethostname()}:{os.getpid()}:1|2026-01-01T00:00:00+00:00"
            patch.setattr("rlhf_core.adapters.registry.releases.this_process", lambda: this)
        with pytest.raises(KeyboardInterrupt):
            yield


def in_child(act, *arguments, dies_at=None, kinds=WRITES):
    """Start a process that acts and ends with 0, or 2 where the product refuses.

    Args:
        dies_at: it ends by SIGKILL right before this call of the registry, counted from 0.
        kinds: how the names of the calls begin that are counted.
    """
    process = multiprocessing.get_context("fork").Process(
        target=_act, args=(act, arguments, dies_at, kinds)
    )
    process.start()
    return process


def _act(act, arguments, dies_at, kinds):
    from rlhf_core.adapters.tracking import mlflow_client
    from rlhf_core.errors import RlhfError

    mlflow_client._client.cache_clear()  # connections are not for two processes
    if dies_at is not None:
        _make_mortal(mlflow_client.mlflow_client(), dies_at, kinds)
    try:
        act(*arguments)
    except RlhfError:
        os._exit(2)
    os._exit(0)


def _make_mortal(client, dies_at, kinds):
    left = itertools.count(dies_at, -1)

    def mortal(call):
        def wrapped(*arguments, **options):
            if not next(left):
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **options)

        return wrapped

    for name in dir(client):
        if name.startswith(kinds):
            setattr(client, name, mortal(getattr(client, name)))


def fight(releases, dice, *, processes, killed):
    """Promote and roll back at once, some killed at some call; returns the exit statuses."""
    from rlhf_core.stages.promote import promote_model
    from rlhf_core.stages.rollback import rollback_policy

    children = []
    for number in range(processes):
        dies_at = dice.randrange(16) if number < killed else None  # a move makes more calls
        act = (promote_model, dice.choice(releases)["policy"])
        if dice.random() < 0.3:
            act = (rollback_policy, PROJECT)
        children.append(in_child(*act, dies_at=dies_at, kinds=CALLS))
    for child in children:
        child.join()
    return [child.exitcode for child in children]


def fights(client, *, rounds, processes, killed, seed):
    """Check, after each of many rounds and one later command, that nothing is mixed."""
    from rlhf_core.adapters.registry.release_aliases import recover
    from rlhf_core.adapters.registry.releases import read_journal

    dice = random.Random(seed)
    releases = [
        register_release(client, without=("reward",) if n % 3 == 2 else ()) for n in range(5)
    ]
    known = {release["policy"]: release for release in releases}
    ended = []
    for _ in range(rounds):
        ended += fight(releases, dice, processes=processes, killed=killed)
        later = in_child(recover, PROJECT)
        later.join()
        assert later.exitcode == 0
        now, before = champions(client), champions(client, "previous-champion")
        assert not now or now == known[now["policy"]], now
        assert not before or before == known[before["policy"]], before
        assert not now or now != before
        head = read_journal(PROJECT).head
        if head is not None:
            assert head.plan.releases[0].policy == now["policy"]
            assert head.state == "done"
            assert not read_journal(PROJECT).appliers()
    return ended
