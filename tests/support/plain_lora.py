"""What `graft-runtime convert` makes of adapters, and what PEFT computes with it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from graft_runtime.__main__ import main

from tests.support.bases import load_for
from tests.support.mixed import PROMPTS


def converted(base: Path, output: Path, *adapters: Path | str, **options: object) -> int:
    """Run the command, and return its exit status."""
    named = [word for adapter in adapters for word in ("--adapter", str(adapter))]
    named += [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    with pytest.raises(SystemExit) as ended:
        main(["convert", "--base", str(base), "--output", str(output), *named])
    return int(str(ended.value.code))


@torch.inference_mode()
def plain_logits(
    base: Path, adapters: Mapping[str, Path], prompts: Sequence[Sequence[int]] = PROMPTS
) -> dict[str, list[torch.Tensor]]:
    """Return PEFT's logits after each prompt alone with each of these, on one base: plain LoRA writes nothing into it.

    PEFT must find in each file all that the config speaks of, and nothing else.
    """
    from peft import PeftModel

    model = load_for("CAUSAL_LM", base)
    made: dict[str, list[torch.Tensor]] = {}
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for name, directory in adapters.items():
            if made:
                model.load_adapter(directory, adapter_name=name)
            else:
                model = PeftModel.from_pretrained(model, directory, adapter_name=name)
            model.set_adapter(name)
            made[name] = [model(input_ids=torch.tensor([list(prompt)])).logits[0, -1] for prompt in prompts]
    assert not [warning.message for warning in told if "adapter keys" in str(warning.message)]
    return made


def check_plain(
    base: Path,
    adapters: Mapping[str, Path],
    expected: Mapping[str, Sequence[torch.Tensor]],
    *,
    directory: Path,
    refused: Mapping[str, str],
    capsys: Any,
) -> None:
    """Check that each adapter becomes plain LoRA that PEFT answers the same with, or is refused.

    Args:
        base: of the adapters.
        adapters: by name.
        expected: PEFT's logits with them after `PROMPTS`.
        directory: where to convert them.
        refused: part of what is said, for those that are no plain LoRA.
        capsys: holds what the command says.
    """
    for name, adapter in adapters.items():
        status, said = converted(base, directory / name, adapter), capsys.readouterr().err
        if name in refused:
            assert status == 2, name
            assert refused[name] in said, (name, said)
            assert "[code: UnsupportedMethod]" in said
            assert not (directory / name).exists()
        else:
            assert status == 0, (name, said)
    plain = {name: directory / name for name in adapters if name not in refused}
    for name, made in (plain_logits(base, plain) if plain else {}).items():
        assert all(
            torch.allclose(mine, theirs, atol=1e-4, rtol=1e-4)
            for mine, theirs in zip(made, expected[name], strict=True)
        ), name
