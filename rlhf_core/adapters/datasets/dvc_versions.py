"""Dataset versions as tags ``data-vN``: published from, and brought back through, scratch clones.

A scratch clone shares the DVC cache of the user's repository and nothing else, so that files left
behind by a failed attempt cannot slip into a version, and the user's working tree stays as it is.
"""

import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from rlhf_core.adapters.datasets.versioning import dvc, git, git_root, repository_root, with_remedy
from rlhf_core.config import VERSION_NAME
from rlhf_core.errors import DataError

_EMPTY_MD5 = hashlib.md5(b"", usedforsecurity=False).hexdigest()
_MADE = re.compile(rf"{VERSION_NAME}: ")
"""Title of a commit that made a version, see ``tag_version``."""
PREPARED = "data/prepared"
"""What the DVC stage ``prepare`` makes."""


def begin_repository(directory: Path, tracked: Sequence[str]) -> str | None:
    """Make a folder a git repository under DVC, with a remote in it; say why not where it cannot.

    Args:
        directory: may be a repository already.
        tracked: files in it that have to be kept: by DVC, unless git keeps them already.
    """
    root = git_root(directory)
    if root is not None and root.resolve() != directory.resolve():
        return f"it lies in the git repository {root}"
    if root is None:
        git("init", "--quiet", cwd=directory)
    if not (directory / ".dvc").is_dir():
        dvc("init", cwd=directory)
        dvc("config", "core.analytics", "false", cwd=directory)
        dvc("remote", "add", "--default", "storage", ".rlhf/dvc-storage", cwd=directory)
    if new := [name for name in tracked if not _is_kept(directory, name)]:
        dvc("add", *new, cwd=directory)
    return None


def _is_kept(directory: Path, name: str) -> bool:
    """Whether git or DVC keeps a file already."""
    return (directory / f"{name}.dvc").is_file() or bool(
        git("ls-files", "--", name, cwd=directory).strip()
    )


def commit_first(directory: Path, files: Sequence[str], tracked: Sequence[str]) -> str:
    """Commit files of a new repository and what DVC notes of others; say how that went."""
    noted = [name for name in tracked if (directory / f"{name}.dvc").is_file()]
    ours = [".dvc", ".dvcignore", *files, *(f"{name}.dvc" for name in noted)]
    ours += sorted({f"{Path(name).parent}/.gitignore" for name in noted})
    git("add", "--", *ours, cwd=directory)
    try:
        git("commit", "--quiet", "-m", "rlhf init", "--", *ours, cwd=directory)
    except DataError as error:  # nobody's name is known, or a hook of theirs says no
        return f"git did not commit ({error}); then: git commit -m 'rlhf init'"
    return "a git repository under DVC, all that was written committed"


@contextmanager
def scratch_clone(root: Path, revision: str, target: Path) -> Iterator[Path]:
    """Give a clone of ``root`` at ``revision`` that reads and writes the same DVC cache.

    Call it inside ``exclusive(target)``: it lies beside ``target``, under a name that the next to
    hold that right clears, where a kill left it.
    """
    clone = target.with_name(f".{target.name}.{os.getpid()}-clone.tmp")
    try:
        git("clone", "--quiet", "--no-checkout", str(root), str(clone), cwd=root)
        git("checkout", "--quiet", "--detach", revision, cwd=clone)
        if not (clone / ".dvc").is_dir():
            raise DataError(f"{revision}: this commit is not under DVC")
        _share_storage(root, clone)
        yield clone
    finally:
        shutil.rmtree(clone, ignore_errors=True)


def require_remote(root: Path) -> None:
    """Try to write to the DVC remote, before the work that would be lost if that failed.

    What is written is an object that any cache may hold: the empty file. Nothing is where the
    newest version is missing: the folder of a disk that is not mounted would be made anew.

    Raises:
        DataError: there is no remote, it does not answer, or refuses; says why, in DVC's words.
            Or the newest version is not on it.
    """
    from dvc.repo import Repo

    tags = list_tags(root)
    newest = prepared_md5(root, tags[-1][0]) if tags else None
    for noisy in ("dvc", "dvc_objects", "aiobotocore", "botocore", "s3fs"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)
    try:
        with Repo(str(root)) as repo, tempfile.NamedTemporaryFile() as empty:
            store = repo.cloud.get_remote_odb()
            is_complete = newest is None or store.exists(newest)
            if is_complete:
                target = store.oid_to_path(_EMPTY_MD5)
                store.fs.makedirs(store.fs.parent(target), exist_ok=True)
                store.fs.put_file(empty.name, target)
    except Exception as error:  # a storage's library raises what it likes
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"the DVC remote cannot be written: {with_remedy(reason)}") from error
    if not is_complete:
        raise DataError(
            f"the DVC remote does not have {tags[-1][0]}, the newest version; if its disk is not"
            " mounted, mount it; if the remote is new: dvc push --all-tags"
        )


def publishing_base(root: Path) -> str:
    """Return what the next version grows from: the checked-out commit.

    Or the last version, where that is ahead of it: after a kill, or where local changes kept the
    branch behind.

    Raises:
        DataError: each has commits the other lacks; a batch would be lost, and its number reused.
            Or there are versions that this clone does not know, or cannot know.
    """
    tags = list_tags(root)
    _require_all_versions(root, {tag for tag, _, _, _ in tags})
    if not tags:
        return "HEAD"
    latest = tags[-1][0]
    counts = git("rev-list", "--left-right", "--count", f"{latest}...HEAD", cwd=root)
    ahead, behind = map(int, counts.split())
    if ahead and behind:
        raise DataError(
            f"{latest} is not part of the checked-out branch, so its batches would be lost;"
            f" first: git merge {latest}"
        )
    return latest if ahead else "HEAD"


def _require_all_versions(root: Path, known: set[str]) -> None:
    """Refuse to number a version where there may be one of that number already.

    What versions there are say the tags here, the commits that made them, and the remotes' tags.

    Raises:
        DataError: one is unknown here, or a remote or a part of the history cannot be seen.
    """
    fetch = "git fetch --tags"
    is_shallow = git("rev-parse", "--is-shallow-repository", cwd=root).strip() == "true"
    if is_shallow:
        fetch += " --unshallow"
    titles = git("log", "--all", "--format=%s", cwd=root).splitlines()
    made = {title.split(":")[0]: "a commit" for title in titles if _MADE.match(title)}
    for remote in git("remote", cwd=root).split():
        made |= dict.fromkeys(_remote_tags(root, remote), remote)
    for version, where in sorted(made.items()):
        if version not in known:
            raise DataError(
                f"{version} exists ({where} names it), and this clone does not have its tag: a new"
                f" version could get the number of an old one; first: {fetch}"
            )
    if is_shallow:
        raise DataError(
            f"this clone is shallow, so nobody can tell which versions there are; first: {fetch}"
        )


def _remote_tags(root: Path, remote: str) -> list[str]:
    """Return the versions that a remote has.

    Raises:
        DataError: it cannot be asked.
    """
    try:
        listing = git("ls-remote", "--tags", "--refs", remote, "data-v*", cwd=root)
    except DataError as error:
        raise DataError(
            f"{remote} cannot be asked which versions there are ({error}); bring it within reach,"
            f" or, if it is gone for good: git remote remove {remote}"
        ) from error
    names = (line.rpartition("refs/tags/")[2] for line in listing.splitlines())
    return [name for name in names if re.fullmatch(VERSION_NAME, name)]


def list_files(root: Path, revision: str, folder: Path) -> list[str]:
    """Return the names of the files that a revision has directly in ``folder``."""
    listing = git("ls-tree", "--name-only", revision, f"{folder.as_posix()}/", cwd=root)
    return [Path(line).name for line in listing.splitlines()]


def list_tags(root: Path) -> list[tuple[str, str, str, str]]:
    """Return (tag, commit, date, message without signature) of every version, oldest first."""
    message = "%(contents:subject)%0a%0a%(contents:body)"
    fields = f"%(refname:short)%00%(*objectname)%00%(creatordate:short)%00{message}%01"
    output = git("for-each-ref", "refs/tags/data-v*", f"--format={fields}", cwd=root)
    found = []
    for record in output.split("\x01"):
        tag, *rest = record.strip("\n").split("\x00")
        if re.fullmatch(VERSION_NAME, tag) and len(rest) == 3:
            found.append((tag, rest[0], rest[1], rest[2]))
    return sorted(found, key=lambda version: int(version[0].removeprefix("data-v")))


def version_named(directory: Path, dvc_md5: str, commit: str | None = None) -> str | None:
    """Return the version that holds a dataset; None where it was never published.

    Args:
        directory: a place in the repository; outside of one nothing was published.
        dvc_md5: of the prepared directory.
        commit: where several versions hold the same bytes, that of this commit, else the last.
    """
    try:
        tags = list_tags(repository_root(directory))
    except (DataError, FileNotFoundError):
        return None
    same = {tag_commit: tag for tag, tag_commit, _, message in tags if dvc_md5 in message}
    return same.get(commit or "") or (list(same.values())[-1] if same else None)


def require_tag(root: Path, version: str) -> str:
    """Return the commit of a version.

    Raises:
        DataError: there is no such version; lists those there are.
    """
    known = {tag: commit for tag, commit, _, _ in list_tags(root)}
    if version not in known:
        listing = ", ".join(known) or "none yet; publish one with `rlhf data publish`"
        raise DataError(f"data version {version!r}: no such version; known: {listing}")
    return known[version]


def prepared_md5(root: Path, revision: str) -> str:
    """Return the DVC md5 of the prepared directory at a revision.

    Raises:
        DataError: the revision records no prepared dataset.
    """
    text = git("show", f"{revision}:dvc.lock", cwd=root)
    try:
        for stage in yaml.safe_load(text)["stages"].values():
            for out in stage.get("outs", ()):
                if out["path"] == PREPARED:
                    return str(out["md5"])
    except (yaml.YAMLError, TypeError, KeyError) as error:
        raise DataError(f"{revision}: dvc.lock cannot be read ({error!r})") from error
    raise DataError(f"{revision}: dvc.lock records no {PREPARED}; `rlhf data publish` makes one")


def commit_of(root: Path, dvc_md5: str) -> str:
    """Return a commit whose dvc.lock records a prepared dataset with this md5.

    Raises:
        DataError: no commit does; the dataset was never published.
    """
    log = git("log", "--all", "--format=%H", f"-S{dvc_md5}", "--", "dvc.lock", cwd=root)
    for commit in log.split():
        # The search also names commits that took the digest, or the whole file, away.
        with suppress(DataError):
            if prepared_md5(root, commit) == dvc_md5:
                return commit
    raise DataError(
        f"no commit records a dataset with DVC md5 {dvc_md5}: it was never published;"
        " `rlhf data publish` keeps a dataset for good"
    )


def fetch_prepared(root: Path, revision: str, target: Path) -> Path:
    """Bring the prepared directory of a revision beside ``target``, from cache or remote.

    Call it inside ``exclusive(target)``, which also clears what a kill leaves.
    """
    with scratch_clone(root, revision, target) as clone:
        dvc("pull", PREPARED, cwd=clone)
        incoming = target.with_name(f".{target.name}.incoming.tmp")
        shutil.copytree(clone / PREPARED, incoming)
        return incoming


def tag_version(clone: Path, root: Path, paths: list[str], summary: dict[str, Any]) -> str:
    """Commit ``paths`` in the clone, tag the commit as the next version, and push its data.

    The repository sees commit and tag only once the data is on the remote; either both or none.

    Returns:
        The new tag.
    """
    tags = list_tags(root)
    number = int(tags[-1][0].removeprefix("data-v")) + 1 if tags else 1
    tag = f"data-v{number}"
    identity = _identity(root)
    git("add", "--force", "--", *paths, cwd=clone)
    title = f"{tag}: {summary['pairs']} pairs"
    git(*identity, "commit", "--quiet", "--allow-empty", "-m", title, cwd=clone)
    body = json.dumps(summary, indent=1, sort_keys=True)
    git(*identity, "tag", "-a", tag, "-m", title, "-m", body, cwd=clone)
    dvc("push", cwd=clone)
    git("fetch", "--quiet", str(clone), f"refs/tags/{tag}:refs/tags/{tag}", cwd=root)
    return tag


def advance_branch(root: Path, tag: str) -> bool:
    """Move the checked-out branch to the version; False where local changes stand in the way."""
    try:
        git("merge", "--quiet", "--ff-only", tag, cwd=root)
    except DataError:
        return False
    return True


def _identity(root: Path) -> list[str]:
    """Options that let the clone commit as the user would in their repository."""
    options = []
    for key in ("user.name", "user.email"):
        try:
            value = git("config", "--get", key, cwd=root).strip()
        except DataError:
            raise DataError(f"git does not know who you are; git config {key} ...") from None
        options += ["-c", f"{key}={value}"]
    return options


def _share_storage(root: Path, clone: Path) -> None:
    """Point the clone at the repository's cache and remotes, credentials included."""
    from dvc.config import Config

    local = root / ".dvc" / "config.local"
    if local.is_file():
        shutil.copyfile(local, clone / ".dvc" / "config.local")
    ours = Config(str(root / ".dvc"))
    with Config(str(clone / ".dvc"), validate=False).edit("local") as theirs:
        cache = ours["cache"].get("dir") or root / ".dvc" / "cache"
        theirs.setdefault("cache", {})["dir"] = str(cache)
        # Otherwise DVC keeps an index of every clone in a folder of the machine, for ever.
        theirs.setdefault("core", {})["site_cache_dir"] = str(clone / ".dvc" / "tmp" / "site")
        for name, remote in ours["remote"].items():
            if "://" not in remote["url"]:
                theirs.setdefault("remote", {}).setdefault(name, {})["url"] = remote["url"]
