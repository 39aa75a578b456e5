"""What vLLM is started with: the arguments of the image's owner, and Graft's laid over them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from graft_runtime.contract.tasks import Task
from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.messages import Start

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""That vLLM has slots for."""


def slot_rank(max_rank: int) -> int:
    """Return the least rank of vLLM's slots that adapters of this rank fit. Raises GraftError: InvalidSpec."""
    for rank in RANKS:
        if rank >= max_rank:
            return rank
    raise GraftError(
        ErrorCode.INVALID_SPEC,
        f"maxRank is {max_rank}, expected at most {RANKS[-1]} with vLLM",
        hint="lower maxRank, or serve from a pool with Graft's own engine",
    )


def check_start(start: Start) -> None:
    """Check that vLLM can serve what is asked. Raises GraftError: InvalidSpec."""
    asked = {
        "a merge": bool(start.merge),
        "quantization": start.quantization is not None,
        f"task {start.task}": start.task not in (None, Task.CAUSAL_LM),
    }
    for what, is_asked in asked.items():
        if is_asked:
            raise GraftError(
                ErrorCode.INVALID_SPEC,
                f"`{start.name}` can't be served: {what} is not done with vLLM",
                hint="leave it out, or serve from a pool with Graft's own engine",
            )


def engine_arguments(start: Start, more: Sequence[str], *, spare_slots: int) -> Any:
    """Return vLLM's arguments for a base model.

    Args:
        start: what the pod asks for; it is laid over what `more` says.
        more: of the image's owner, as for `vllm serve`.
        spare_slots: beside those that the pod may fill.

    Raises:
        GraftError: InvalidSpec for what vLLM does not take.
    """
    from vllm.engine.arg_utils import AsyncEngineArgs  # noqa: PLC0415 - it takes seconds, and the socket is there first
    from vllm.utils.argparse_utils import FlexibleArgumentParser  # noqa: PLC0415

    check_start(start)
    limits = start.limits
    slots = limits.max_mounted_adapters + spare_slots
    ours: dict[str, Any] = {
        "model": start.directory,
        "tokenizer": start.directory,
        "skip_tokenizer_init": True,
        "trust_remote_code": False,
        "dtype": start.dtype,
        "max_model_len": None,
        "max_num_seqs": limits.max_sequences,
        "enable_prefix_caching": limits.prefix_cache,
        "enforce_eager": not limits.compile,
        "enable_lora": True,
        "max_loras": slots,
        "max_cpu_loras": slots,  # never more loaded than there are: vLLM would read files again during a step
        "max_lora_rank": slot_rank(limits.max_rank),
        "fully_sharded_loras": False,
        "default_mm_loras": None,
        "generation_config": "vllm",
        "enable_log_requests": False,
        "worker_extension_cls": "graft_vllm.slots.SlotReader",
    }
    try:
        parser = AsyncEngineArgs.add_cli_args(FlexibleArgumentParser(exit_on_error=False))
        arguments = AsyncEngineArgs.from_cli_args(parser.parse_args([*more, f"--model={start.directory}"]))
        for name, value in ours.items():
            setattr(arguments, name, value)
        longest = arguments.create_model_config().max_model_len
        arguments.max_model_len = min(longest, limits.max_sequence_length)
    except (ValueError, TypeError, SystemExit) as error:
        raise GraftError(
            ErrorCode.INVALID_SPEC,
            f"vLLM takes neither `{start.name}` nor its arguments {' '.join(more) or '(none)'}: {error}",
            hint="`vllm serve --help=all` in the engine's image lists its arguments",
        ) from error
    return arguments
