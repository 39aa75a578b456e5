"""Each method of PEFT is served, or refused by its name with what to do instead."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from graft_runtime.adapters.files import read_adapter_files
from graft_runtime.adapters.methods.registry import METHODS
from graft_runtime.adapters.methods.unserved import UNSERVED
from graft_runtime.errors import ErrorCode, GraftError


def test_every_method_of_peft_is_served_or_refused_before_a_weight_is_read(tmp_path: Path) -> None:
    from peft import PeftType

    assert {kind.value for kind in PeftType} == METHODS.keys() | UNSERVED.keys()
    assert not METHODS.keys() & UNSERVED.keys()
    (tmp_path / "adapter_model.safetensors").write_bytes(b"no header")
    for method, instead in UNSERVED.items():
        (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": method}))
        with pytest.raises(GraftError) as caught:
            read_adapter_files(tmp_path, name="sql", max_rank=64)
        assert caught.value.code is ErrorCode.UNSUPPORTED_METHOD
        assert f"'{method}'" in caught.value.what
        assert caught.value.hint == instead


def test_an_option_that_is_not_served_on_embeddings(make_adapter: Callable[..., Path]) -> None:
    adapter = make_adapter("normed", target_modules=["embed_tokens", "q_proj"], use_dora=True)
    with pytest.raises(GraftError) as caught:
        read_adapter_files(adapter, name="sql", max_rank=64)
    assert caught.value.code is ErrorCode.UNSUPPORTED_METHOD
    assert caught.value.details == ("model.embed_tokens: DoRA on an embedding",)
