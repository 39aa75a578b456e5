"""Threads for one kind of blocking work each, so that no kind waits for another."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

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
