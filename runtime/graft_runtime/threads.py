"""Threads for one kind of blocking work each, so that no kind waits for another."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar
from weakref import WeakValueDictionary

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class Threads:
    """So many threads, which are started when they are needed.

    Args:
        count: at most.
        name: what their names begin with.
    """

    def __init__(self, count: int, name: str) -> None:
        self._executor = ThreadPoolExecutor(count, thread_name_prefix=name)

    async def run(
        self, call: Callable[Arguments, Result], *arguments: Arguments.args, **options: Arguments.kwargs
    ) -> Result:
        """Return what a blocking call returns, once one of the threads has made it."""
        work = partial(contextvars.copy_context().run, call, *arguments, **options)
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)


class Turns:
    """Threads that make one call at a time for each of those who ask, so that who asks for much waits for himself.

    Args:
        count: at most.
        name: what their names begin with.
    """

    def __init__(self, count: int, name: str) -> None:
        self._threads = Threads(count, name)
        self._locks: WeakValueDictionary[Hashable, asyncio.Lock] = WeakValueDictionary()

    async def run(
        self,
        asker: Hashable,
        call: Callable[Arguments, Result],
        *arguments: Arguments.args,
        **options: Arguments.kwargs,
    ) -> Result:
        """Return what a blocking call returns, once it is its asker's turn and one of the threads has made it."""
        async with self._locks.setdefault(asker, asyncio.Lock()):
            return await self._threads.run(call, *arguments, **options)
