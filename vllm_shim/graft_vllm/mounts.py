"""Adapters in vLLM's slots: loaded from normal forms, proved before they are told as mounted, removed when unused."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.messages import Mount, Mounted

from graft_vllm.plain_lora import PlainLora, read_plain_lora
from graft_vllm.proof import Told, check_effect, check_slots, distance

Trial = Callable[[Sequence[int], Any], Awaitable[Told]]
"""Answers a prompt, with an adapter or without one, and tells the log-probabilities."""
NOISE_FACTOR = 20
TRIAL_PROMPT = (1, 2, 3, 5, 8, 13, 21, 34)


@dataclass
class Held:
    """One adapter in a slot."""

    request: Any
    """vLLM's LoRARequest."""
    facts: PlainLora
    users: int = 0
    unused: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.unused.set()

    def hold(self) -> None:
        """Count a request that runs on it."""
        self.users += 1
        self.unused.clear()

    def release(self) -> None:
        """Count that request no longer."""
        self.users -= 1
        if not self.users:
            self.unused.set()


class Mounts:
    """The adapters that vLLM holds, by digest.

    Args:
        engine: vLLM's AsyncLLM.
        places: how many the pod may mount.
        trial: asks the engine.
        make_request: makes vLLM's LoRARequest of name, number and directory.
        vocabulary: token ids of the model.
    """

    def __init__(
        self, engine: Any, places: int, trial: Trial, make_request: Callable[[str, int, str], Any], vocabulary: int
    ) -> None:
        self._engine, self._places, self._trial, self._make_request = engine, places, trial, make_request
        self._vocabulary = vocabulary
        self._held: dict[str, Held] = {}
        self._numbers = itertools.count(1)
        """None is given twice: vLLM lists what it has loaded half as loaded, and a slot keeps what it had before."""
        self._changing = asyncio.Lock()

    def get(self, digest: str) -> Held:
        """Return an adapter that is mounted. Raises GraftError: Internal."""
        if digest not in self._held:
            raise GraftError(ErrorCode.INTERNAL, f"adapter {digest} is not mounted in the engine")
        return self._held[digest]

    async def mount(self, mount: Mount) -> Mounted:
        """Load an adapter and prove that it lies in its slot and acts; leave nothing behind where it does not.

        Raises:
            GraftError: what `read_plain_lora`, `check_slots` and `check_effect` raise; NoCapacity where every place is
                taken; UnsupportedMethod for what vLLM refuses.
        """
        async with self._changing:
            if (held := self._held.get(mount.digest)) is None:
                if len(self._held) >= self._places:
                    what = f"adapter `{mount.name}` has no place: all {self._places} are taken"
                    raise GraftError(ErrorCode.NO_CAPACITY, what)
                file = await asyncio.to_thread(read_plain_lora, Path(mount.directory), mount.name)
                held = Held(self._make_request(mount.digest, next(self._numbers), mount.directory), file)
                try:
                    await self._load(held, mount.name)
                except BaseException:
                    await self._engine.remove_lora(held.request.lora_int_id)
                    raise
                self._held[mount.digest] = held
            return Mounted(mount.digest, held.facts.facts, held.facts.bytes)

    async def unmount(self, digest: str) -> None:
        """Let an adapter go, once no request runs on it: vLLM would load it again for one that does."""
        if (held := self._held.get(digest)) is None:
            return
        await held.unused.wait()
        async with self._changing:
            if self._held.pop(digest, None) is not None:
                await self._engine.remove_lora(held.request.lora_int_id)

    async def check_held(self) -> None:
        """Check that vLLM has loaded what it is believed to have. Raises RuntimeError."""
        async with self._changing:
            expected = {held.request.lora_int_id for held in self._held.values()}
            if (found := set(await self._engine.list_loras())) != expected:
                raise RuntimeError(f"vLLM has loaded the adapters {sorted(found)}, expected {sorted(expected)}")

    async def _load(self, held: Held, name: str) -> None:
        try:
            loaded = await self._engine.add_lora(held.request)
        except Exception as error:
            raise GraftError(ErrorCode.UNSUPPORTED_METHOD, f"vLLM does not take adapter `{name}`: {error}") from error
        if not loaded:
            raise GraftError(ErrorCode.INTERNAL, f"vLLM has not loaded adapter `{name}`, and says no more")
        ranks = await self._engine.collective_rpc("graft_slot", args=(held.request.lora_int_id,))
        check_slots(name, held.facts.norms, ranks)
        prompt = [token for token in [*TRIAL_PROMPT, *held.facts.tokens] if token < self._vocabulary]
        base = await self._trial(prompt, None)
        noise = NOISE_FACTOR * distance(base, await self._trial(prompt, None))
        check_effect(name, base, await self._trial(prompt, held.request), noise)
