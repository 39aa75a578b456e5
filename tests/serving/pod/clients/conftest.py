"""The clients in an environment of their own, and a pod for them whose base takes tools and long prompts."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from graft_local.cache import cache_directory

HERE = Path(__file__).parent
CLIENT_SECONDS = 400.0
TEMPLATE = (
    "{% for tool in tools or [] %}{{ tool | tojson }}<tool_call>{% endfor %}{% for message in messages %}"
    "[{{ message.role }}:{{ message.content }}{% for call in message.tool_calls or [] %}"
    "{{ call.function | tojson }}{% endfor %}]{% endfor %}{% if add_generation_prompt %}=>{% endif %}"
)
"""Takes tools, in the style of Hermes and Qwen."""


@pytest.fixture(scope="session")
def client_python() -> Path:
    """The Python of the environment that `make clients` installs the clients into."""
    python = cache_directory() / "clients" / "bin" / "python"
    assert python.exists(), "the clients are not installed: `make clients` does it"
    return python


@pytest.fixture(scope="session")
def run_client(client_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """`run_client(program, *arguments)`: runs one of `programs` to its end; the JSON of its last line."""

    def run(program: str, *arguments: Any) -> Any:
        scratch = tmp_path_factory.mktemp(program)
        environment = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
        offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(scratch), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [client_python, HERE / "programs" / f"{program}.py", *map(str, arguments)],
            cwd=scratch,
            env=environment | offline | {"OPENAI_API_KEY": "none", "DO_NOT_TRACK": "1"},
            capture_output=True,
            text=True,
            timeout=CLIENT_SECONDS,
            check=False,
        )
        assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-8000:]}"
        return json.loads(done.stdout.splitlines()[-1])

    return run


@pytest.fixture(scope="session")
def roomy_base(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    """`tiny_base` with room for 4096 tokens and a template that takes tools."""
    base = tmp_path_factory.mktemp("roomy") / "base"
    shutil.copytree(tiny_base, base)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 4096}))
    (base / "chat_template.jinja").write_text(TEMPLATE)
    return base


@pytest.fixture(scope="module")
def plain(make_adapter: Callable[..., Path]) -> Path:
    """An adapter."""
    return make_adapter("plain")


@pytest.fixture(scope="module")
def pod(make_pod: Callable[..., Any], plain: Path, roomy_base: Path) -> Any:
    """A pod with the base `tiny` and the adapter `plain`."""
    pod = make_pod(base=roomy_base)
    pod.mount_set(pod.set_of(1, pod.entry("plain", plain)))
    pod.start()
    pod.wait_ready()
    return pod
