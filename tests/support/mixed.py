"""Adapters of all kinds on one base, on the runner that serves it, and what PEFT computes with each."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from graft_runtime.adapters.compile import compile_adapter
from graft_runtime.adapters.deltas import CompiledAdapter
from graft_runtime.adapters.files import read_adapter_files
from graft_runtime.contract.config import EngineConfig
from graft_runtime.engine.requests import first_position
from graft_runtime.engine.route import choose_runner
from graft_runtime.model.load import load_base
from graft_runtime.model.modules import BaseModules
from graft_runtime.model.rows import RowAdapter
from graft_runtime.runners.decoder.runner import DecoderRunner
from graft_runtime.runners.padded import PaddedRunner

PROMPTS = ([3, 1, 2, 5, 9, 11, 4], [7, 8, 300, 6], [1, 2, 5, 9, 3, 3, 2, 5, 10], [40, 41])


class Mixed:
    """A base and adapters on the runner that serves it."""

    def __init__(self, base: Path, adapters: Mapping[str, Path]) -> None:
        self.base = load_base(base, name="tiny", dtype="float32", max_sequence_length=256)
        self.runner = choose_runner(self.base, EngineConfig(max_rank=64))
        self.adapters = {name: self.compiled(name, directory) for name, directory in adapters.items()}
        for name, adapter in self.adapters.items():
            with torch.inference_mode():
                self.runner.trial(adapter, name)

    def compiled(self, name: str, directory: Path) -> CompiledAdapter:
        files = read_adapter_files(directory, name=name, max_rank=64)
        model, base = self.base.model, self.base
        return compile_adapter(files, base.layout, BaseModules(model), dtype=base.dtype, device=base.device)

    @torch.inference_mode()
    def logits(self, prompts: Sequence[Sequence[int]], names: Sequence[str | None]) -> list[torch.Tensor]:
        """After each prompt, [vocabulary]."""
        rows = [self._row(prompt, name) for prompt, name in zip(prompts, names, strict=True)]
        for row in rows:
            assert self.runner.bank.hold(row)
        if isinstance(self.runner, DecoderRunner):
            made = self.runner.logits_of([list(prompt) for prompt in prompts], rows)
        else:
            assert isinstance(self.runner, PaddedRunner)
            made = self.runner.run(self.runner.start(prompts, [[] for _ in prompts], rows))
        for row in rows:
            self.runner.bank.release(row)
        return list(made.cpu())

    def _row(self, prompt: Sequence[int], name: str | None) -> tuple[RowAdapter, ...]:
        if name is None:
            return ()
        adapter = self.adapters[name]
        return (RowAdapter(adapter, 1.0, first_position(prompt, adapter.invocation)),)


@torch.inference_mode()
def peft_logits(base: Path, adapter: Path | None, prompts: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """Return PEFT's logits after each prompt alone, on a base of its own: PEFT writes into it."""
    from peft import PeftModel
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForCausalLM.from_pretrained(base)
        if adapter is not None:
            ends = tuple(f"embed_tokens.{inner}weight" for inner in ("", "base_layer.", "token_adapter.base_layer."))
            saved = load_file(adapter / "adapter_model.safetensors")
            rows = next((tensor.shape[0] for key, tensor in saved.items() if key.endswith(ends)), None)
            if rows and rows != model.get_input_embeddings().weight.shape[0]:
                model.resize_token_embeddings(rows)
            model = PeftModel.from_pretrained(model, adapter)
        model.eval()
        return [model(input_ids=torch.tensor([list(prompt)])).logits[0, -1] for prompt in prompts]


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.allclose(one, other, atol=1e-3)
