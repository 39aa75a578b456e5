"""guidellm: four requests one after the other, made by its own generator of prompts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

BASE_URL, MODEL, CHECKPOINT = sys.argv[1:]
SETTINGS = {
    "backend": f"kind=openai_http,target={BASE_URL.removesuffix('/v1')},model={MODEL}",
    "profile": "kind=synchronous",
    "constraint": "kind=max_requests,count=4",
    "tokenizer": f"kind=huggingface_auto,model={CHECKPOINT}",
    "data": "kind=synthetic_text,prompt_tokens=16,output_tokens=8",
    "output": "kind=json,path=report.json",
}
options = [word for name, value in SETTINGS.items() for word in (f"--{name}", value)]
subprocess.run([sys.executable, "-m", "guidellm", "run", "--disable-console", *options], check=True)
(benchmark,) = json.loads(Path("report.json").read_text())["benchmarks"]
metrics = benchmark["metrics"]
print(json.dumps(metrics["request_totals"] | {"tokens": metrics["output_token_count"]["successful"]["mean"]}))
