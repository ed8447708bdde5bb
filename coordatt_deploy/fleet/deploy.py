"""Bring a bundle to boards: copy what is missing, verify it there, prove it there, then switch.

On each board, under a lock:

    releases/.incoming-…   the files, put together from the store there, every hash compared
    parity                 there, on the board's own runtimes; what is not proven goes no further
    releases/VERSION       its name, now that it is whole and proven
    current                one rename; before that the old version is current, after that the new one
    the last KEEP stay     older ones go

A board on which anything fails keeps its old version. What a board says is data of another machine: names are held to
their form, documents to their type and size.
"""

import getpass
import platform
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Final

from coordatt_deploy.bundle import Bundle
from coordatt_deploy.documents import DocumentError, load
from coordatt_deploy.errors import BundleError, DeployError, LostConnectionError, TargetError, UsageError
from coordatt_deploy.files import sha256
from coordatt_deploy.fleet.deploy_result import BoardDeployment, DeployResult, DeployState
from coordatt_deploy.fleet.plan import FleetHost
from coordatt_deploy.manifest import MANIFEST
from coordatt_deploy.packing.contents import Choice, contents, unlike_manifest
from coordatt_deploy.packing.entries import check_paths
from coordatt_deploy.packing.result import Checksums
from coordatt_deploy.parity.result import ParityResult
from coordatt_deploy.plain_text import plain
from coordatt_deploy.progress import Stages
from coordatt_deploy.scratch import Scratch
from coordatt_deploy.targets.ssh.address import FORM, SCHEME, SshAddress, parse_address
from coordatt_deploy.targets.ssh.connection import Answer, Connection, shortened
from coordatt_deploy.targets.ssh.files import RemoteFiles
from coordatt_deploy.targets.ssh.place import find_tool
from coordatt_deploy.targets.ssh.releases import Releases, ReleasesThere

FOLDER: Final = "coordatt-deploy"  # in the home folder there
KEEP: Final = 3
TRIES: Final = 3  # of a board whose connection is lost on the way; what arrived is kept
AGAIN_S: Final = 1.0
PARITY_S: Final = 1800.0  # a network of 224 pixels takes a Raspberry Pi 3 some seconds; six formats, forty inputs
MOST_PROOF_BYTES: Final = 16 << 20
HASH_DIGITS: Final = 12
LONGEST_NAME: Final = 60
TRAVELS: Final = Choice(reference=False, reports=False, unnamed=False)  # boards have no torch to use the reference

_PROVE: Final = r"""
"$1" parity "$2" --outputs-only --json --output "$3"
status=$?
rm -f -- "$3"
exit $status
"""


@dataclass(frozen=True, slots=True)
class DeployPlan:
    """What is deployed, and how.

    Attributes:
        choice: What of the bundle.
        folder: On the boards; relative to the home folder there.
        keep: Versions that stay there, the current one included.
        parity: Whether each board has to prove it; without that only hashes are compared.
        parity_s: Seconds that the proof may take.
        dry_run: Whether boards are only asked what would be done.
        at_once: Boards that are worked on at the same time.
    """

    choice: Choice = TRAVELS
    folder: str = FOLDER
    keep: int = KEEP
    parity: bool = True
    parity_s: float = PARITY_S
    dry_run: bool = False
    at_once: int = 8


@dataclass(frozen=True, slots=True)
class Release:
    """A version of a bundle, as it travels.

    Attributes:
        version: Its name.
        files: Where each file lies here, by its path in the bundle.
        hashes: Their sha256, likewise.
        artifacts: sha256 of each artifact by its path, as the manifest has it.
    """

    version: str
    files: Mapping[str, Path]
    hashes: Mapping[str, str]
    artifacts: Mapping[str, str]


def release_of(bundle: Bundle, choice: Choice, folder: Path) -> Release:
    """Return what of a bundle travels, hashed.

    Args:
        bundle: Opened.
        choice: What of it.
        folder: An empty one, for the manifest that is cut to it.

    Raises:
        UsageError: The bundle has no such artifact.
        BundleError: A file was changed after the bundle was written.
    """
    chosen = contents(bundle, choice)
    (folder / MANIFEST).write_text(chosen.manifest_text, encoding="utf-8")
    files = {MANIFEST: folder / MANIFEST} | dict(chosen.files)
    check_paths(list(files))
    hashes = {path: sha256(file) for path, file in files.items()}
    changed = sorted(unlike_manifest(chosen.manifest, hashes))
    if changed:
        raise BundleError(
            f"{bundle.root.name} is damaged: {changed[0]} was changed after the bundle was written; build it again"
        )
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", chosen.manifest.model.name)[:LONGEST_NAME].lstrip("._-") or "net"
    content = Checksums(hashes).content
    artifacts = {item.path: item.sha256 for item in chosen.manifest.artifacts}
    return Release(f"{name}-{content[:HASH_DIGITS]}", files, hashes, artifacts)


def deploy(bundle: Bundle, hosts: Sequence[FleetHost], plan: DeployPlan, stages: Stages) -> DeployResult:
    """Bring a bundle to boards; a board that fails keeps what it has, and the others go on.

    Args:
        bundle: Opened, its hashes compared or not.
        hosts: The boards, each reached over SSH.
        plan: What of the bundle, and how.
        stages: Shows the progress.

    Raises:
        UsageError: The bundle has no such artifact, or a place is no machine that ssh reaches.
        BundleError: The bundle is damaged.
    """
    _check(hosts)
    with Scratch() as scratch:
        with stages.stage("hash what is deployed"):
            release = release_of(bundle, plan.choice, scratch)
        boards = _at_all(
            hosts, plan.at_once, lambda host, stopped: _Board(host, plan, release, stopped).deploy(), stages
        )
    return DeployResult(str(bundle.root), release.version, tuple(release.artifacts), False, plan.dry_run, boards)


def roll_back(
    hosts: Sequence[FleetHost], plan: DeployPlan, stages: Stages, bundle: Bundle | None = None
) -> DeployResult:
    """Switch boards to the version that was current before.

    Args:
        hosts: The boards, each reached over SSH.
        plan: Where on the boards.
        stages: Shows the progress.
        bundle: Only boards whose current version is this one go back; None for all.

    Raises:
        UsageError: A place is no machine that ssh reaches; or see ``deploy``.
        BundleError: See ``deploy``.
    """
    _check(hosts)
    with Scratch() as scratch:
        release = None if bundle is None else release_of(bundle, plan.choice, scratch)
    boards = _at_all(
        hosts, plan.at_once, lambda host, stopped: _Board(host, plan, release, stopped).roll_back(), stages
    )
    version, artifacts = (None, ()) if release is None else (release.version, tuple(release.artifacts))
    return DeployResult(None if bundle is None else str(bundle.root), version, artifacts, True, plan.dry_run, boards)


def _check(hosts: Sequence[FleetHost]) -> None:
    for host in hosts:
        address_of(host)


def address_of(host: FleetHost) -> SshAddress:
    """Return where a board is reached.

    Raises:
        UsageError: It is no machine that ssh reaches.
    """
    if not host.target.startswith(SCHEME):
        raise UsageError(f"{host.name} is {host.target}, which is not reached over SSH; name boards as {FORM}")
    return parse_address(host.target)


class _DifferentError(DeployError):
    """A board does not prove what was brought to it."""


class _Board:
    """The work on one board; what is known of it meanwhile is kept for the case that it breaks off."""

    def __init__(self, host: FleetHost, plan: DeployPlan, release: Release | None, stopped: threading.Event) -> None:
        self.host, self.plan, self.release, self.stopped = host, plan, release, stopped
        self.address = address_of(host)
        self.found = BoardDeployment(host.name, str(self.address), DeployState.LEFT, known=False)

    def deploy(self) -> BoardDeployment:
        """Bring the release there."""
        release = self.release
        if release is None:
            raise RuntimeError("there is nothing to deploy")
        return self._tried(lambda connection: self._deploy(connection, release), release.version)

    def roll_back(self) -> BoardDeployment:
        """Go back to the version before."""
        return self._tried(self._roll_back, None)

    def _tried(self, work: Callable[[Connection], BoardDeployment], version: str | None) -> BoardDeployment:
        """Do the work, again where the connection is lost; say what is current where it fails."""
        for left in reversed(range(TRIES)):
            try:
                with Connection(self.address, stopped=self.stopped) as connection:
                    return work(connection)
            except LostConnectionError as error:
                if left and not self.stopped.wait(AGAIN_S):
                    continue
                return self._left(error, DeployState.LEFT, version)
            except _DifferentError as error:
                return self._left(error, DeployState.FAILED, version)
            except DeployError as error:
                return self._left(error, DeployState.LEFT, version)
        raise RuntimeError("a loop ended that returns")

    def _left(self, error: DeployError, state: DeployState, version: str | None) -> BoardDeployment:
        """Say why a board was left, and which version is current there: it may have switched before it was lost."""
        reason = str(error).removeprefix(f"{self.found.address} ").removeprefix(f"{self.found.address}: ")
        found = replace(self.found, state=state, reason=reason, now=self.found.before)
        if not self.found.known or self.stopped.is_set():
            return found
        with suppress(DeployError), Connection(self.address) as connection:
            now = self._releases(connection, RemoteFiles(connection)).status().current
            if now is not None and version is not None and _is_version(now, version) and now != found.before:
                return replace(found, state=DeployState.SWITCHED, now=now)
            return replace(found, now=now)
        return replace(found, now=None, known=False)

    def _releases(self, connection: Connection, files: RemoteFiles) -> Releases:
        folder = (self.host.folder or self.plan.folder).removeprefix("~/")
        return Releases(connection, files.folders.home / PurePosixPath(folder))

    def _deploy(self, connection: Connection, release: Release) -> BoardDeployment:
        files = RemoteFiles(connection)
        there = self._releases(connection, files)
        status = self._status(there)
        tool = self._tool(connection, files) if self.plan.parity else None
        if self.plan.dry_run:
            return self._planned(there, status, release)
        with there.locked(_who()) as token:
            status = self._status(there)
            version, is_there = self._version(there, status, release, token)
            folder = there.folder(version)
            if not is_there:
                folder = there.incoming(token)
                self._bring(files, there, folder, release)
            if tool is not None:
                self._prove(connection, tool, folder, there.root / "releases" / f".proof-{token}.json", release)
            if not is_there:
                there.admit(token, version, release.hashes)
            if status.current != version:
                there.switch(token, version, status.with_current(version))
            # not by what was current a moment ago: the connection may have been lost right behind the switch
            state = DeployState.ALREADY if self.found.before == version else DeployState.SWITCHED
            done = replace(self.found, state=state, now=version)
            with suppress(DeployError):  # it is done; what could not be removed now is removed the next time
                there.prune(token, files, status.kept(version, self.plan.keep))
        return done

    def _status(self, there: Releases) -> ReleasesThere:
        status = there.status()
        if not self.found.known:  # what was found first is what it had before
            self.found = replace(self.found, before=status.current, known=True)
        if status.blocked is not None:
            raise TargetError(status.blocked)
        return status

    def _version(self, there: Releases, status: ReleasesThere, release: Release, token: str) -> tuple[str, bool]:
        """The name that the release has there, with a number where a damaged one has its own and is current.

        Returns:
            The name, and whether all of it is there already.
        """
        number, version = 1, release.version
        while version in status.taken:
            if version in status.whole and there.why_not_whole(there.folder(version), release.hashes) is None:
                return version, True
            if version != status.current:
                there.set_aside(token, version)
                break
            number += 1
            version = f"{release.version}.{number}"
        return version, False

    def _bring(self, files: RemoteFiles, there: Releases, folder: PurePosixPath, release: Release) -> None:
        sent = files.send({release.hashes[path]: file for path, file in release.files.items()})
        self.found = replace(self.found, sent_bytes=self.found.sent_bytes + sent.bytes)
        files.place(release.hashes, folder, linked=True)
        wrong = there.why_not_whole(folder, release.hashes)
        if wrong is not None:
            raise TargetError(f"what arrived is damaged: {wrong}; look at its disk, and deploy again")

    def _tool(self, connection: Connection, files: RemoteFiles) -> str:
        try:
            return find_tool(connection, files.folders, self.host.tool)
        except LostConnectionError:
            raise
        except TargetError as error:
            raise TargetError(f"{error}; or compare hashes alone: --no-parity") from None

    def _prove(
        self, connection: Connection, tool: str, folder: PurePosixPath, output: PurePosixPath, release: Release
    ) -> None:
        """Have the board judge every artifact.

        Raises:
            TargetError: It cannot.
            _DifferentError: One is not proven.
        """
        answer = connection.run(
            ["sh", "-c", _PROVE, "sh", tool, str(folder), str(output)],
            timeout_s=self.plan.parity_s,
            most_bytes=MOST_PROOF_BYTES,
        )
        problem = why_not_proven(answer, release.artifacts)
        self.found = replace(self.found, proven=problem is None)
        if problem is not None:
            raise _DifferentError(problem)

    def _planned(self, there: Releases, status: ReleasesThere, release: Release) -> BoardDeployment:
        if status.current is not None and _is_version(status.current, release.version):
            said = "it would be proven again, and nothing changed"
        else:
            have = release.version in status.whole
            said = f"{'it has' if have else 'it would get'} {there.folder(release.version)}, and would switch to it"
        return replace(self.found, state=DeployState.PLANNED, now=status.current, reason=said)

    def _roll_back(self, connection: Connection) -> BoardDeployment:
        there = self._releases(connection, RemoteFiles(connection))
        status = self._status(there)
        self._goal(status)
        if self.plan.dry_run:
            return replace(
                self.found,
                state=DeployState.PLANNED,
                now=status.current,
                reason=f"it would go back to {self._goal(status)}",
            )
        with there.locked(_who()) as token:
            status = self._status(there)
            goal = self._goal(status)
            wrong = there.why_not_whole(there.folder(goal), there.hashes(goal))
            if wrong is not None:
                raise TargetError(f"{goal} is damaged there: {wrong}; deploy it again")
            there.switch(token, goal, status.back_to(goal))
        return replace(self.found, state=DeployState.BACK, now=goal)

    def _goal(self, status: ReleasesThere) -> str:
        """The version to go back to."""
        current = status.current
        if self.release is not None and (current is None or not _is_version(current, self.release.version)):
            raise TargetError(f"its current version is {current or 'none'}, not {self.release.version}")
        if status.before is None:
            raise TargetError(f"it has no version before {current}" if current else "it has no version at all")
        return status.before


def why_not_proven(answer: Answer, artifacts: Mapping[str, str]) -> str | None:
    """Read what ``parity --json`` said on a board: why not every artifact is proven, or None where each is.

    Args:
        answer: Of the command, words of another machine.
        artifacts: sha256 of each artifact by its path, as they are here.

    Raises:
        TargetError: It judged nothing.
    """
    if answer.status not in (0, 1):
        raise TargetError(f"cannot prove parity: {answer.reason}")
    try:
        result = load(ParityResult, answer.stdout.decode("utf-8"))
    except (UnicodeDecodeError, DocumentError) as error:
        raise TargetError(f"answered with what is no verdict on parity: {shortened(str(error))}") from None
    verdicts = {verdict.path: verdict for verdict in result.artifacts}
    if len(verdicts) < len(result.artifacts):
        return "it judged one artifact twice, and which verdict counts is not known"
    for path, expected in artifacts.items():
        verdict = verdicts.get(path)
        if verdict is None:
            return f"{path} was not judged"
        if verdict.sha256 != expected:
            return f"{path} was judged by other bytes than those that were sent"
        if verdict.passed is not True:
            return f"{path}: {shortened(verdict.problem or 'not proven')}"
    return None if answer.status == 0 and result.passed else "the board calls it failed, and names no artifact"


def _is_version(name: str, version: str) -> bool:
    """Whether *name* is *version*, or its copy in place of a damaged one."""
    return name == version or re.fullmatch(rf"{re.escape(version)}\.\d+", name) is not None


def _who() -> str:
    """What others are told of who holds the lock."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = "somebody"
    return plain(f"{user} on {platform.node()} since {datetime.now(UTC):%Y-%m-%d %H:%M} UTC")


def _at_all(
    hosts: Sequence[FleetHost],
    at_once: int,
    work: Callable[[FleetHost, threading.Event], BoardDeployment],
    stages: Stages,
) -> tuple[BoardDeployment, ...]:
    """Do the work on all boards, some at a time; an interruption ends what runs for them, and lets their locks go."""
    stopped = threading.Event()
    with (
        stages.stage("boards", len(hosts)) as step,
        ThreadPoolExecutor(max_workers=at_once, thread_name_prefix="board") as threads,
    ):
        try:
            boards = [threads.submit(work, host, stopped) for host in hosts]
            for _ in as_completed(boards):
                step()
        except BaseException:
            stopped.set()
            threads.shutdown(cancel_futures=True)
            raise
        return tuple(board.result() for board in boards)
