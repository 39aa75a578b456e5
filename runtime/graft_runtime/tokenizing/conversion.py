"""Conversion of tokenizers that have no tokenizer.json, in a child process: it takes Transformers, and other files.

`python -m graft_runtime.tokenizing.conversion SOURCE TARGET` is that process.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from graft_runtime.contract.wire import Fault
from graft_runtime.durable import PARTIAL_SUFFIX, put_in_place, sync
from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.logs import configure_logs
from graft_runtime.one_shot import run_once
from graft_runtime.tokenizing.files import TOKENIZER_FILE

SENTENCEPIECE_FILES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "spm.model")
TEKKEN_FILE = "tekken.json"
VOCABULARIES = (*SENTENCEPIECE_FILES, TEKKEN_FILE, "vocab.json", "vocab.txt")
"""A tokenizer without a tokenizer.json is in one of these."""
TIKTOKEN_FILES = ("tiktoken.model", "*.tiktoken")
"""Vocabularies of tiktoken: how a text is split, and which tokens are special, stands in Python code beside them."""
CONVERSION_SECONDS = 300.0
_HINT = "add a tokenizer.json: AutoTokenizer.from_pretrained(...).save_pretrained(...) writes one"
_TIKTOKEN_HINT = (
    "add a tokenizer.json that makes the same tokens: use the model's copy for Transformers, or make one with "
    "Transformers' TikTokenConverter, the pattern and the special tokens of the code beside the file"
)
_TIKTOKEN_LINE = re.compile(rb"[A-Za-z0-9+/]+={0,2} [0-9]+\r?\n")


class Converted(BaseModel):
    """What the child process answers."""

    fault: Fault | None = None


async def convert(source: Path, target: Path) -> None:
    """Make a directory with a tokenizer.json and what a tokenizer needs beside it.

    Args:
        source: the checkpoint; only read.
        target: there once all of it is; what earlier conversions left unfinished beside it is removed.

    Raises:
        GraftError: NotAModel when it can't be converted, and see `run_once`.
    """
    _check_vocabulary(source)
    partial = target.with_name(f"{target.name}{PARTIAL_SUFFIX}")
    await asyncio.to_thread(_remove_partial, target.parent)
    arguments = ["-m", __name__, str(source), str(partial)]
    what = f"the conversion of the tokenizer of {source.name}"
    try:
        answer = await run_once(arguments, Converted.model_validate_json, what=what, seconds=CONVERSION_SECONDS)
        if answer.fault is not None:
            raise GraftError(answer.fault.code, answer.fault.message)
        await asyncio.to_thread(_put_in_place, partial, target)
    finally:
        await asyncio.to_thread(shutil.rmtree, partial, ignore_errors=True)


def _check_vocabulary(source: Path) -> None:
    """Check that there is a file that could be converted. Raises GraftError: NotAModel."""
    if any((source / name).exists() for name in VOCABULARIES):
        return
    if found := sorted(path.name for pattern in TIKTOKEN_FILES for path in source.glob(pattern)):
        raise _of_tiktoken(found[0])
    known = ", ".join((TOKENIZER_FILE, *VOCABULARIES))
    raise GraftError(
        ErrorCode.NOT_A_MODEL,
        f"the base model has no tokenizer: its checkpoint holds none of {known}",
        hint="save its tokenizer beside the model with the tokenizer's save_pretrained()",
        field="spec.baseModel.uri",
    )


def _of_tiktoken(file: str) -> GraftError:
    return GraftError(
        ErrorCode.NOT_A_MODEL,
        f"the base model's tokenizer is in {file}, a vocabulary of tiktoken, which does not say how a text is split",
        hint=_TIKTOKEN_HINT,
        field="spec.baseModel.uri",
    )


def _remove_partial(directory: Path) -> None:
    for left in directory.glob(f"*{PARTIAL_SUFFIX}"):
        shutil.rmtree(left, ignore_errors=True)


def _put_in_place(partial: Path, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    for file in partial.iterdir():
        sync(file)
    put_in_place(partial, target)


def converted(source: Path, target: Path) -> Converted:
    """Convert in this process. Raises nothing."""
    try:
        _check_sentencepiece(source)
        _save(source, target)
    except MemoryError:
        what = f"the tokenizer of {source.name} needs more memory to be converted than there is for that"
        return Converted(fault=Fault.of(GraftError(ErrorCode.NO_CAPACITY, what)))
    except GraftError as error:
        return Converted(fault=Fault.of(error))
    except Exception as error:
        said = " ".join(str(error).split())
        what = f"the tokenizer of {source.name} can't be converted: {type(error).__name__}: {said}"
        return Converted(fault=Fault.of(GraftError(ErrorCode.NOT_A_MODEL, what, hint=_HINT)))
    return Converted()


def _save(source: Path, target: Path) -> None:
    from transformers import AutoTokenizer  # noqa: PLC0415 - seconds, and in the child process alone

    tokenizer = AutoTokenizer.from_pretrained(str(source), local_files_only=True, trust_remote_code=False)
    family = type(tokenizer).__name__
    if not tokenizer.is_fast:
        raise ValueError(f"{family} of Transformers has no form in the tokenizers library")
    read = tokenizer.init_kwargs.get("vocab_file")
    if read is None:
        raise ValueError(f"{family} of Transformers reads none of its vocabulary's files without a tokenizer.json")
    if Path(read).name == TEKKEN_FILE:
        _name_tekken_s_tokens(tokenizer)
    tokenizer.save_pretrained(str(target))


def _name_tekken_s_tokens(tokenizer: Any) -> None:
    """Name the tokens that Mistral's format names by itself, which chat templates and the end of answers go by."""
    for name, token in (("bos_token", "<s>"), ("eos_token", "</s>")):
        if getattr(tokenizer, name) is None and token in tokenizer.get_vocab():
            setattr(tokenizer, name, token)


def _check_sentencepiece(source: Path) -> None:
    """Check that the files named so are of SentencePiece: Transformers blames other libraries.

    Raises:
        ValueError, GraftError: NotAModel for a vocabulary of tiktoken, which Llama 3 and GLM-4 call `tokenizer.model`.
    """
    from sentencepiece import SentencePieceProcessor  # noqa: PLC0415 - in the child process alone

    for name in SENTENCEPIECE_FILES:
        if (source / name).exists():
            try:
                SentencePieceProcessor(model_file=str(source / name))
            except Exception as error:
                with (source / name).open("rb") as file:
                    if _TIKTOKEN_LINE.match(file.read(4096)):
                        raise _of_tiktoken(name) from error
                raise ValueError(f"{name} is no model of SentencePiece") from error


if __name__ == "__main__":
    configure_logs()
    os.environ["HF_HUB_OFFLINE"] = "1"
    with contextlib.redirect_stdout(sys.stderr):  # libraries may print
        result = converted(Path(sys.argv[1]), Path(sys.argv[2]))
    sys.stdout.write(result.model_dump_json())
