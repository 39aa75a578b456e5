"""What exists once the base is loaded: its runner, the flow of requests on it, and the queue before that."""

from __future__ import annotations

from graft_runtime.contract.facts import AdapterFacts, DeltaKind
from graft_runtime.contract.tasks import Task
from graft_runtime.engine.batches import BatchFlow
from graft_runtime.engine.budgets import Budgets
from graft_runtime.engine.ledger import room_on_device
from graft_runtime.engine.one_pass import OnePassFlow
from graft_runtime.engine.packed import PackedFlow
from graft_runtime.engine.requests import Flow
from graft_runtime.engine.route import choose_runner
from graft_runtime.engine.scheduler import Scheduler
from graft_runtime.messages import BaseLoaded, Capabilities, Start, Tier
from graft_runtime.model.load import BaseModel
from graft_runtime.runners.decoder.runner import DecoderRunner
from graft_runtime.runners.encoder import EncoderRunner
from graft_runtime.runners.padded import PaddedRunner
from graft_runtime.runners.runner import Runner
from graft_runtime.runners.seq2seq import Seq2SeqRunner

ADAPTERS_PER_REQUEST = 4
_OF_PROMPTS = frozenset({DeltaKind.PROMPT, DeltaKind.PREFIX})


class Serving:
    """A base that serves.

    Args:
        base: the model.
        start: what was asked for.
        budgets: of the engine.
        merged: see `BaseLoaded`.

    Raises:
        GraftError: NotAModel when no runner can serve the base, NoCapacity when there is no room for a request.
    """

    def __init__(self, base: BaseModel, start: Start, budgets: Budgets, merged: tuple[AdapterFacts, ...] = ()) -> None:
        self.base = base
        parameters = base.model.num_parameters()  # packed ones are none any more
        self.runner = choose_runner(base, start.limits, budgets)
        self.scheduler = Scheduler(_flow(self.runner, start.limits.max_sequences, budgets))
        bank, given = self.runner.bank.bytes_at_most, budgets.device_bytes
        self.device_bytes = room_on_device(bank, base.device) if given is None else given
        """For mounted adapters."""
        self.loaded = BaseLoaded(
            runner=self.runner.name,
            context_length=self.runner.context_length,
            vocabulary_size=base.vocabulary_size,
            parameter_count=parameters,
            dtype=str(base.dtype).removeprefix("torch."),
            task=base.task,
            capabilities=_capabilities(base.task, self.device_bytes, self.runner),
            merged=merged,
            capacity_tokens=self._capacity_tokens(start.limits.max_sequences),
            quantization=base.quantization,
        )

    def _capacity_tokens(self, max_sequences: int) -> int:
        """Return how many tokens keys and values may be kept of; caches of batches grow by themselves."""
        if isinstance(self.runner, DecoderRunner):
            return self.runner.kv.tokens
        return max_sequences * self.runner.context_length


def _capabilities(task: Task, device_bytes: int, runner: Runner) -> Capabilities:
    """Return what this engine does with adapters: all that they can be compiled to, where it has a meaning."""
    deltas = frozenset(DeltaKind) if task.generates else frozenset(DeltaKind) - _OF_PROMPTS
    tiers: tuple[Tier, ...] = ("device", "host", "disk")
    tells = isinstance(runner, DecoderRunner)
    return Capabilities(deltas, True, ADAPTERS_PER_REQUEST, tiers, device_bytes, tells_prompts=tells, grammars=True)


def _flow(runner: Runner, max_sequences: int, budgets: Budgets) -> Flow:
    """Return the flow: how requests run on this runner."""
    match runner:
        case DecoderRunner():
            return PackedFlow(runner, max_sequences, budgets.prompt_tokens)
        case PaddedRunner() | Seq2SeqRunner():
            return BatchFlow(runner, max_sequences)
        case EncoderRunner():
            return OnePassFlow(runner, max_sequences)
    raise AssertionError(f"no requests run on a {type(runner).__name__}")
