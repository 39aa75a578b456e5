"""The checks of wanted versions: each answers its prompt before it may answer under its name. One event loop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from graft_runtime.contract.answer_check import AnswerCheck
from graft_runtime.errors import ErrorCode, GraftError, cut
from graft_runtime.pod.adapters import AskVersion
from graft_runtime.pod.aliases import Alias, Checked, VersionKey
from graft_runtime.pod.catalogue import Artifact
from graft_runtime.pod.leases import Lease, unknown_model
from graft_runtime.pod.lending import Lending
from graft_runtime.pod.mounting import Mounting

logger = logging.getLogger(__name__)

CHECKS_AT_ONCE = 4
RETRY_SECONDS = 5.0
SHOWN_CHARACTERS = 300


@dataclass(frozen=True, eq=False)
class _Running:
    """A check under way."""

    alias: Alias
    artifact: Artifact
    version: VersionKey
    task: asyncio.Task[None]


class AnswerChecks:
    """The checks of one pod. Whoever answers them gets wanted versions from it, by name: see `NamedAdapters`.

    Args:
        find: a name → its alias, and the version that is wanted; raises GraftError where there is none.
        mounting: mounts what is to answer.
        returned: called with each lease that has ended.
        ended: called with a name, and the version, whose check has ended.
    """

    default_model: str | None = None
    merged_digest: str | None = None

    def __init__(
        self,
        find: Callable[[str], tuple[Alias, Artifact]],
        mounting: Mounting,
        returned: Callable[[Lease], None],
        ended: Callable[[Alias, Artifact], None],
    ) -> None:
        self._find, self._ended = find, ended
        self._lending = Lending(self._find_unchecked, mounting, returned)
        self.acquire, self.wake = self._lending.acquire, self._lending.wake
        self.ask: AskVersion | None = None
        """Set before the first adapter set is in force."""
        self._places = asyncio.Semaphore(CHECKS_AT_ONCE)
        self._running: dict[str, _Running] = {}
        """By name."""

    def names(self) -> Iterator[str]:
        """Iterate over the names whose wanted versions are being checked."""
        return iter(tuple(self._running))

    def is_served(self, name: str) -> bool:
        """Return whether the wanted version of a name is being checked."""
        return name in self._running

    def share(self, name: str) -> int:
        """Return 1: each name has one check at a time."""
        return 1

    def unknown(self, name: str, field: str = "model") -> GraftError:
        """Return why a name can't be asked."""
        return unknown_model(name, field, hint="it was removed meanwhile")

    def follow(self, alias: Alias, artifact: Artifact | None) -> None:
        """Run the check of a name's wanted version once the trial mount is over; stop any other check of the name."""
        name, check = alias.entry.name, alias.entry.check
        if check is None:
            self.stop(name)
            return
        version, running = alias.check_to_run, self._running.get(name)
        if running is not None and (running.alias is not alias or running.version != version):
            self.stop(name)
        if version is None or name in self._running:
            return
        if artifact is not None and artifact.proven and artifact.fault is None:
            artifact.checked_for.add(name)
            task = asyncio.create_task(self._run(alias, artifact, check, version))
            self._running[name] = _Running(alias, artifact, version, task)

    def stop(self, name: str) -> None:
        """Stop the check of a name, if one runs."""
        if (running := self._running.pop(name, None)) is not None:
            running.artifact.checked_for.discard(name)
            running.task.cancel()

    async def _run(self, alias: Alias, artifact: Artifact, check: AnswerCheck, version: VersionKey) -> None:
        checked = await self._check(alias.entry.name, artifact, check, version)
        del self._running[alias.entry.name]
        artifact.checked_for.discard(alias.entry.name)
        alias.checked = checked
        self._ended(alias, artifact)

    async def _check(self, name: str, artifact: Artifact, check: AnswerCheck, version: VersionKey) -> Checked | None:
        """Return what comes of a check; None: the version has a fault by now, and is checked once that is gone."""
        assert self.ask is not None
        while True:
            try:
                async with self._places:
                    answer = await self.ask(name, check)
                return Checked(version, None if check.passes(answer) else _wrong_answer(name, check, answer))
            except GraftError as error:
                if artifact.fault is not None:
                    return None
                if not error.code.passes:
                    return Checked(version, _no_answer(name, error.what))
                logger.warning("the check of adapter `%s` is tried again: %s", name, error)
            except Exception as error:
                logger.exception("adapter `%s` can't be checked", name)
                return Checked(version, _no_answer(name, f"{type(error).__name__}: {error}"))
            await asyncio.sleep(RETRY_SECONDS)

    def _find_unchecked(self, name: str) -> tuple[Alias, Artifact]:
        alias, artifact = self._find(name)
        return Alias(alias.entry.model_copy(update={"check": None, "serving": None})), artifact


def _wrong_answer(name: str, check: AnswerCheck, answer: str) -> GraftError:
    return GraftError(
        ErrorCode.CHECK_FAILED,
        f"adapter `{name}` answers its check with {cut(answer, SHOWN_CHARACTERS)!r}, expected {check.expected}",
        hint="put files at the source that answer as expected, or correct the adapter's `check`",
    )


def _no_answer(name: str, why: str) -> GraftError:
    return GraftError(
        ErrorCode.CHECK_FAILED,
        f"adapter `{name}` can't answer its check: {why}",
        hint="correct the adapter's `check`: `prompt` is completed as a text, `message` needs a chat template",
    )
