"""A base that is served from the claim that it lies in: the same answers, no copy, and an end once it changes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from graft_runtime.contract.checkpoints import Source
from graft_runtime.contract.config import BaseModelConfig
from graft_runtime.contract.status import BaseState
from graft_runtime.errors import ErrorCode
from graft_runtime.store.cache import Cache
from graft_runtime.store.sources import Sources

from tests.support.shelf import MOUNT
from tests.support.waiting import wait_until

PROMPT = "Dear Sir"
TOKENS = 8


def test_a_base_is_served_in_place_until_a_file_of_it_changes(
    make_pod: Any, tiny_base: Path, make_adapter: Any, make_oracle: Any, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    sources = Sources((MOUNT,), {"shelf": tiny_base.parent})
    digest = Cache(tmp_path, None, tuple).copy(sources, f"pvc://shelf/{tiny_base.name}", "model").digest
    source = Source(uri="pvc://shelf/base")
    base = BaseModelConfig(name="tiny", source=source, dtype="float32", digest=digest, in_place=True)
    plain = make_adapter("plain")
    pod = make_pod(base_model=base)
    pod.mount_set(pod.set_of(1, pod.entry("plain", plain, pinned=True)))
    pod.start()
    oracle, tokenizer = make_oracle(tiny_base), AutoTokenizer.from_pretrained(tiny_base)
    oracle.load(plain)
    prompt = tokenizer(PROMPT)["input_ids"]
    pod.wait_ready()
    for name, adapter in {"tiny": None, "plain": "plain"}.items():
        tokens = oracle.answer(prompt, adapter, tokens=TOKENS).tokens
        end = [*tokens, tokenizer.eos_token_id].index(tokenizer.eos_token_id)
        text = pod.text(name, prompt=PROMPT, max_tokens=TOKENS)
        assert text == tokenizer.decode(tokens[:end], skip_special_tokens=True), name
    kept = [path for path in (pod.directory / "cache").rglob("*.safetensors") if not path.is_symlink()]
    assert [path.name for path in kept] == ["adapter_model.safetensors"], "no copy of the base's weights"
    status = pod.status()
    assert (status.base.state, status.base.digest) == (BaseState.SERVING, digest)

    weights = pod.shelf / "base" / "model.safetensors"
    with weights.open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x7f")
    wait_until(lambda: pod.probe("/readyz") == 503, lambda: f"the pod is unready:\n{pod.log}", 60)
    fault = pod.status().base.fault
    assert fault.code is ErrorCode.DIGEST_MISMATCH
    assert "model.safetensors has changed since it was hashed" in fault.message
    for name in ("tiny", "plain"):
        refused = pod.complete(name)
        assert refused.status == 503
        assert "has changed since it was hashed" in json.dumps(refused.json)
