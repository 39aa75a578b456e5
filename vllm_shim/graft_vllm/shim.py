"""The commands of one pod, taken to vLLM, and what comes of them, told as events."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

from graft_runtime.contract.facts import DeltaKind
from graft_runtime.contract.tasks import Task
from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.messages import (
    BaseFailed,
    BaseLoaded,
    Cancel,
    Capabilities,
    Command,
    EngineFault,
    Event,
    Generate,
    Generated,
    Mount,
    MountFailed,
    Occupancy,
    Start,
    StepDone,
    Unmount,
    Unmounted,
    Vocabulary,
)

from graft_vllm.arguments import engine_arguments
from graft_vllm.mounts import Held, Mounts
from graft_vllm.parameters import count_parameters
from graft_vllm.proof import Told
from graft_vllm.requests import engine_prompt, generated, sampling_parameters

logger = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 5.0
TRIAL_TOKENS = 2
TRIAL_LOGPROBS = 20
CAPABILITIES = Capabilities(
    frozenset({DeltaKind.LOW_RANK}), weights=False, adapters_per_request=1, takes_normal_forms=True
)


class EngineEndedError(Exception):
    """vLLM is dead, or no longer what it is believed to be."""


class Shim:
    """One engine for one pod. One event loop.

    Args:
        tell: sends events to the pod.
        arguments: of the image's owner, for vLLM.
        version: of vLLM.
    """

    def __init__(self, tell: Callable[[list[Event]], None], arguments: Sequence[str], version: str) -> None:
        self._tell, self._arguments, self._version = tell, arguments, version
        self._engine: Any = None
        self._mounts: Mounts | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._requests: dict[str, asyncio.Task[None]] = {}
        self._trials = itertools.count(1)
        self._last_step = time.monotonic()
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Fails with EngineEndedError."""

    def take(self, command: Command) -> None:
        """Take one command of the pod."""
        match command:
            case Start():
                self._start(command)
            case Mount():
                self._spawn(self._mount(command))
            case Unmount(digest=digest, keep=keep):
                self._spawn(self._unmount(digest, keep=keep))
            case Generate():
                self._requests[command.request] = self._spawn(self._generate(command))
                self._tell([Occupancy(running=len(self._requests))])
            case Cancel(request=request):
                if (task := self._requests.get(request)) is not None:
                    task.cancel()  # vLLM aborts a request that nobody reads
            case Vocabulary():
                pass
            case _:
                raise AssertionError(f"this engine was sent {type(command).__name__}, which it is not capable of")

    def _start(self, start: Start) -> None:
        """Load the base; this takes minutes, in which nothing else is done."""
        try:
            self._load(start)
        except GraftError as error:
            self._tell([BaseFailed(EngineFault.of(error))])
        except Exception as error:
            logger.exception("vLLM can't load `%s`", start.name)
            fault = GraftError(ErrorCode.NO_CAPACITY, f"vLLM can't load `{start.name}`: {error}", hint=_LOG)
            self._tell([BaseFailed(EngineFault.of(fault))])

    def _load(self, start: Start) -> None:
        from vllm.lora.request import LoRARequest  # noqa: PLC0415 - it takes seconds, and the socket is there first
        from vllm.platforms import current_platform  # noqa: PLC0415
        from vllm.v1.engine.async_llm import AsyncLLM  # noqa: PLC0415

        # On a CPU vLLM answers rows of the base with the last slot: that one stays empty.
        arguments = engine_arguments(start, self._arguments, spare_slots=1 if current_platform.is_cpu() else 0)
        self._engine = engine = AsyncLLM.from_engine_args(arguments)
        model = engine.model_config
        vocabulary = model.get_vocab_size()
        self._mounts = Mounts(engine, start.limits.max_mounted_adapters, self._trial, LoRARequest, vocabulary)
        self._spawn(self._loaded(model, vocabulary, count_parameters(Path(start.directory))))

    async def _loaded(self, model: Any, vocabulary: int, parameters: int) -> None:
        cache = self._engine.vllm_config.cache_config
        self._tell(
            [
                BaseLoaded(
                    f"vllm {self._version}",
                    model.max_model_len,
                    vocabulary,
                    parameters,
                    str(model.dtype).removeprefix("torch."),
                    Task.CAUSAL_LM,
                    CAPABILITIES,
                    capacity_tokens=cache.num_gpu_blocks * cache.block_size if cache.num_gpu_blocks else None,
                )
            ]
        )
        while True:
            await asyncio.sleep(HEARTBEAT_SECONDS)
            await self._mounted.check_held()  # every worker answers, and only between two steps
            self._step_done()

    @property
    def _mounted(self) -> Mounts:
        assert self._mounts is not None, "the pod mounts and asks once the base is loaded"
        return self._mounts

    async def _mount(self, mount: Mount) -> None:
        try:
            self._tell([await self._mounted.mount(mount)])
        except GraftError as error:
            self._tell([MountFailed(mount.digest, EngineFault.of(error))])

    async def _unmount(self, digest: str, *, keep: bool) -> None:
        await self._mounted.unmount(digest)
        self._tell([Unmounted(digest, "disk" if keep else None)])

    async def _generate(self, generate: Generate) -> None:
        held: Held | None = None
        try:
            if generate.adapters:
                held = self._mounted.get(generate.adapters[0].digest)
                held.hold()
            first = True
            async for output in self._engine.generate(
                engine_prompt(generate),
                sampling_parameters(generate),
                generate.request,
                lora_request=held.request if held is not None else None,
            ):
                event = generated(generate, output, first=first)
                first = False
                self._tell([event])
                self._step_done()
        except (GraftError, ValueError) as error:
            fault = error if isinstance(error, GraftError) else GraftError(ErrorCode.INVALID_REQUEST, str(error))
            self._tell([Generated(generate.request, [], "error", EngineFault.of(fault))])
        finally:
            if held is not None:
                held.release()
            self._requests.pop(generate.request, None)
            self._tell([Occupancy(running=len(self._requests))])

    async def _trial(self, prompt: Sequence[int], adapter: Any) -> Told:
        from vllm import SamplingParams  # noqa: PLC0415
        from vllm.sampling_params import RequestOutputKind  # noqa: PLC0415

        parameters = SamplingParams(
            temperature=0.0,
            max_tokens=TRIAL_TOKENS,
            logprobs=TRIAL_LOGPROBS,
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        name = f"trial-{next(self._trials)}"
        asked = {"prompt_token_ids": list(prompt), "cache_salt": name}
        places: list[dict[int, float]] = []
        async for output in self._engine.generate(asked, parameters, name, lora_request=adapter):
            told = output.outputs[0].logprobs
            places = [{token: value.logprob for token, value in place.items()} for place in told]
        return places

    def _step_done(self) -> None:
        now = time.monotonic()
        self._tell([StepDone(now - self._last_step)])
        self._last_step = now

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and not self.ended.done():
            self.ended.set_exception(EngineEndedError(f"{type(error).__name__}: {error}"))


_LOG = "the log of the engine's container says more"
