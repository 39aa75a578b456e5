"""A server of Transformers' `generate` or PEFT's, as people write one by hand: what has come makes one static batch.

    python bench/engine_static_peer.py --model DIRECTORY --port PORT --rows 16 [--adapter NAME DIRECTORY …]

It answers POST /v1/completions with token ids as prompt, greedy, without streams. Rows are padded on the left, and all
of them run until the longest answer is done.
"""

from __future__ import annotations

import argparse
import json
import queue
import threading
import warnings
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

BASE = "__base__"
"""PEFT's name for no adapter."""
QUIET_SECONDS = 0.05
"""A batch begins when it is full, or when nothing has come for so long."""


@dataclass
class _Waiting:
    body: dict[str, Any]
    done: threading.Event = field(default_factory=threading.Event)


class Batches:
    """One model, and the thread that runs it."""

    def __init__(self, directory: Path, adapters: dict[str, Path], rows: int) -> None:
        model = AutoModelForCausalLM.from_pretrained(directory)
        model.generation_config.eos_token_id = None
        for name, adapter in adapters.items():
            if isinstance(model, PeftModel):
                model.load_adapter(adapter, name)
            else:
                model = PeftModel.from_pretrained(model, adapter, adapter_name=name)
        self._model = model.eval()
        self._adapters, self._rows = frozenset(adapters), rows
        self._queue: queue.SimpleQueue[_Waiting] = queue.SimpleQueue()
        threading.Thread(target=self._run, daemon=True).start()

    def answer(self, body: dict[str, Any]) -> None:
        """Return once the answer is there."""
        waiting = _Waiting(body)
        self._queue.put(waiting)
        waiting.done.wait()

    def _run(self) -> None:
        while True:
            batch = [self._queue.get()]
            while len(batch) < self._rows:
                try:
                    batch.append(self._queue.get(timeout=QUIET_SECONDS))
                except queue.Empty:
                    break
            self._generate([waiting.body for waiting in batch])
            for waiting in batch:
                waiting.done.set()

    @torch.inference_mode()
    def _generate(self, bodies: list[dict[str, Any]]) -> None:
        longest = max(len(body["prompt"]) for body in bodies)
        ids = torch.tensor([[0] * (longest - len(body["prompt"])) + body["prompt"] for body in bodies])
        mask = torch.tensor([[0] * (longest - len(body["prompt"])) + [1] * len(body["prompt"]) for body in bodies])
        options: dict[str, Any] = {"max_new_tokens": max(body["max_tokens"] for body in bodies)}
        if self._adapters:
            names = [body["model"] if body["model"] in self._adapters else BASE for body in bodies]
            options["adapter_names"] = names
        self._model.generate(input_ids=ids, attention_mask=mask, do_sample=False, pad_token_id=0, **options)


def serve(batches: Batches, port: int) -> None:
    """Answer requests on the loopback address until the process is ended."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._tell({})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            batches.answer(body)
            self._tell({"usage": {"completion_tokens": body["max_tokens"]}})

        def _tell(self, answer: dict[str, Any]) -> None:
            content = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        request_queue_size = 128

    Server(("127.0.0.1", port), Handler).serve_forever()


def main() -> None:
    """Serve what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="directory of the base")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--rows", type=int, default=16, help="of a batch, at most")
    parser.add_argument("--adapter", nargs=2, action="append", default=[], metavar=("NAME", "DIRECTORY"))
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    transformers_logging.set_verbosity_error()
    adapters = {name: Path(directory) for name, directory in arguments.adapter}
    serve(Batches(arguments.model, adapters, arguments.rows), arguments.port)


if __name__ == "__main__":
    main()
