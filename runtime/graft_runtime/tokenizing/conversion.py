"""Conversion of tokenizers that have no tokenizer.json, in a child process: it takes Transformers, and other files.

`python -m graft_runtime.tokenizing.conversion SOURCE TARGET` is that process.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sys
from pathlib import Path

from pydantic import BaseModel

from graft_runtime.contract.wire import Fault
from graft_runtime.durable import replacing
from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.logs import configure_logs
from graft_runtime.one_shot import run_once
from graft_runtime.tokenizing.defaults import CHAT_TEMPLATE_FILE
from graft_runtime.tokenizing.files import ADDED_TOKENS_FILE, CONFIG_FILE, SPECIAL_TOKENS_FILE, TOKENIZER_FILE

COMPANIONS = (CONFIG_FILE, SPECIAL_TOKENS_FILE, ADDED_TOKENS_FILE, CHAT_TEMPLATE_FILE)
CONVERSION_SECONDS = 300.0


class Converted(BaseModel):
    """What the child process answers."""

    fault: Fault | None = None


async def convert(source: Path, target: Path) -> None:
    """Put a tokenizer.json, and what a tokenizer needs beside it, into a directory.

    Args:
        source: the checkpoint; only read.
        target: made if it is missing.

    Raises:
        GraftError: NotAModel when it can't be converted, and see `run_once`.
    """
    await asyncio.to_thread(_copy_companions, source, target)
    arguments = ["-m", __name__, str(source), str(target)]
    what = f"the conversion of the tokenizer of {source.name}"
    answer = await run_once(arguments, Converted.model_validate_json, what=what, seconds=CONVERSION_SECONDS)
    if answer.fault is not None:
        raise GraftError(answer.fault.code, answer.fault.message)


def _copy_companions(source: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for name in COMPANIONS:
        if (source / name).exists():
            shutil.copyfile(source / name, target / name)


def _converted(source: Path, target: Path) -> Converted:
    from transformers import AutoTokenizer  # noqa: PLC0415 - seconds, and in the child process alone

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(source), local_files_only=True, trust_remote_code=False)
        with replacing(target / TOKENIZER_FILE) as partial:
            tokenizer.backend_tokenizer.save(str(partial))
    except MemoryError:
        what = f"the tokenizer of {source.name} needs more memory to be converted than there is for that"
        return Converted(fault=Fault.of(GraftError(ErrorCode.NO_CAPACITY, what)))
    except Exception as error:
        what = f"the tokenizer of {source.name} can't be converted: {type(error).__name__}: {error}"
        hint = "add a tokenizer.json: AutoTokenizer.from_pretrained(...).save_pretrained(...) writes one"
        return Converted(fault=Fault.of(GraftError(ErrorCode.NOT_A_MODEL, what, hint=hint)))
    return Converted()


if __name__ == "__main__":
    configure_logs()
    with contextlib.redirect_stdout(sys.stderr):  # libraries may print
        result = _converted(Path(sys.argv[1]), Path(sys.argv[2]))
    sys.stdout.write(result.model_dump_json())
