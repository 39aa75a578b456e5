"""hf:// against a local Hub: commits, tokens, cuts, refusals, slow and lying servers, full caches."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import resource
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from graft_runtime.contract.checkpoints import Source
from graft_runtime.contract.config import SourceMount
from graft_runtime.errors import GraftError
from graft_runtime.store.cache import Cache
from graft_runtime.store.fetches import Fetches, retry_seconds
from graft_runtime.store.peers import PeerPods
from graft_runtime.store.sources import Sources

from tests.support.shelf import embedder

URI = "hf://acme/sql"
CONFIG_PATH = "/acme/sql/resolve/{}/adapter_config.json"


def refusal(cache: Cache, sources: Sources, uri: str = URI, revision: str | None = "v1") -> GraftError:
    with pytest.raises(GraftError) as caught:
        cache.copy(sources, uri, "adapter", revision)
    return caught.value


@pytest.fixture
def refused(cache: Cache, sources: Sources, unfinished: Any) -> Iterator[Callable[[], GraftError]]:
    """Fetches `v1` in vain; nothing of it may be left at the end."""
    yield lambda: refusal(cache, sources)
    assert unfinished() == []


def test_a_tag_becomes_its_commit_and_only_our_files_are_read(hub: Any, sources: Sources, cache: Cache) -> None:
    cached = cache.copy(sources, URI, "adapter", "v1")
    assert cached.revision == hub.commit
    files = {path.name: path.read_bytes() for path in cached.directory.iterdir()}
    assert files == {"adapter_config.json": hub.config, "adapter_model.safetensors": hub.weights}
    assert not any(path.is_symlink() for path in cached.directory.iterdir())
    assert hub.paths("/resolve/") == [
        f"/acme/sql/resolve/{hub.commit}/{name}" for name in ("adapter_config.json", "adapter_model.safetensors")
    ], "no pickle, nothing that moves"


def test_without_a_revision_it_is_main(hub: Any, sources: Sources, cache: Cache) -> None:
    assert cache.copy(sources, URI, "adapter").revision == hub.later


def test_a_folder_of_a_repository(hub: Any, sources: Sources, cache: Cache) -> None:
    digest = cache.copy(sources, "hf://acme/shelf/deep/sql", "adapter").digest
    assert digest == cache.copy(sources, URI, "adapter", "v1").digest, "the same bytes are the same adapter"
    fault = refusal(cache, sources, "hf://acme/shelf/deep", None)
    assert (fault.code, "'sql'" in fault.message) == ("NotAnAdapter", True)
    assert refusal(cache, sources, "hf://acme/shelf/none", None).code == "NotFound"


def test_a_commit_is_copied_once(hub: Any, sources: Sources, cache: Cache) -> None:
    first = cache.copy(sources, URI, "adapter", "v1")
    before = len(hub.cdn.asked)
    assert cache.copy(sources, URI, "adapter", hub.commit) == first
    assert len(hub.cdn.asked) == before


async def test_two_names_of_one_commit_share_one_download(hub: Any, sources: Sources, cache: Cache) -> None:
    fetches = Fetches(sources, cache, PeerPods(cache))
    revisions = ("v1", hub.commit)
    found = await asyncio.gather(*(fetches.resolve(Source(uri=URI, revision=name), "adapter") for name in revisions))
    assert found[0] == found[1]
    assert hub.cdn.paths() == [hub.weights_path]
    await fetches.close()


def test_the_token_goes_to_its_host_alone(hub: Any, sources: Sources, cache: Cache) -> None:
    hub.token = "hf_very_secret"
    cache.copy(sources, URI, "adapter", "v1")
    assert {asked.headers.get("authorization") for asked in hub.asked} == {"Bearer hf_very_secret"}
    assert hub.cdn.asked
    assert not any("authorization" in asked.headers for asked in hub.cdn.asked)


def test_a_token_is_read_again_at_each_use(hub: Any, sources: Sources, cache: Cache, secret: Path) -> None:
    hub.token = "hf_new"
    fault = refusal(cache, sources)
    assert fault.code == "Unauthorized"
    assert retry_seconds(fault.code, 0) is not None, "the Secret may be corrected"
    (secret / "token").write_text("hf_new")
    assert cache.copy(sources, URI, "adapter", "v1").revision == hub.commit


def test_the_token_is_never_told(
    hub: Any, sources: Sources, cache: Cache, secret: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    hub.token = "hf_other"
    fault = refusal(cache, sources)
    hub.token = "hf_very_secret"
    cache.copy(sources, URI, "adapter", "v1")
    assert "hf_very_secret" not in f"{fault} {caplog.text}"


@pytest.mark.parametrize("content", [b"", b"\n", b"two\nlines", b"\xff", None])
def test_a_secret_without_a_token_is_told(sources: Sources, cache: Cache, secret: Path, content: bytes | None) -> None:
    (secret / "token").unlink()
    if content is not None:
        (secret / "token").write_bytes(content)
    fault = refusal(cache, sources)
    assert (fault.code, "`acme`" in fault.message) == ("Unauthorized", True)


def test_the_token_in_the_environment_is_left_alone(
    hub: Any, sources: Sources, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_of_somebody")
    hub.put("open/sql", hub.commit, {"adapter_config.json": b"{}", "adapter_model.safetensors": b"w"}, "main")
    cache.copy(sources, "hf://open/sql", "adapter")
    assert not any("authorization" in asked.headers for asked in hub.asked)


@pytest.mark.parametrize(
    ("code", "why", "expected"),
    [
        (401, "", "Unauthorized"),
        (403, "", "Unauthorized"),
        (403, "GatedRepo", "Unauthorized"),
        (404, "RepoNotFound", "NotFound"),
        (404, "RevisionNotFound", "NotFound"),
        (418, "", "SourceUnavailable"),
    ],
)
def test_what_the_hub_refuses(hub: Any, refused: Callable[[], GraftError], code: int, why: str, expected: str) -> None:
    for path in (CONFIG_PATH.format(hub.commit), hub.info_path("acme/sql", "v1")):
        hub.faults[path] = [hub.status(code, **{"X-Error-Code": why})] * 9
        fault = refused()
        assert (fault.code, URI in fault.message) == (expected, True)


@pytest.mark.parametrize("code", [429, 500, 502, 503])
def test_a_passing_fault_is_tried_again(hub: Any, sources: Sources, cache: Cache, code: int) -> None:
    for path in (hub.info_path("acme/sql", "v1"), CONFIG_PATH.format(hub.commit)):
        hub.faults[path] = [hub.status(code)] * 2
    assert cache.copy(sources, URI, "adapter", "v1").revision == hub.commit


def test_a_lasting_fault_is_told_in_bounded_time(hub: Any, sources: Sources, cache: Cache) -> None:
    hub.faults[hub.info_path("acme/sql", "v1")] = [hub.status(503)] * 99
    fault = refusal(cache, sources)
    assert (fault.code, "503" in fault.message) == ("SourceUnavailable", True)
    assert len(hub.asked) == 3


def test_a_hub_that_is_away_is_told(hub: Any, cache: Cache, sources: Sources) -> None:
    hub.close()
    assert refusal(cache, sources).code == "SourceUnavailable"


def test_a_cut_download_goes_on_where_it_broke(hub: Any, sources: Sources, cache: Cache) -> None:
    path = hub.weights_path
    hub.cdn.faults[path] = [hub.cut(hub.weights, 200_000), hub.status(503)]
    cached = cache.copy(sources, URI, "adapter", "v1")
    assert (cached.directory / "adapter_model.safetensors").read_bytes() == hub.weights
    ranges = [asked.headers.get("range") for asked in hub.cdn.asked]
    assert ranges[0] is None
    assert len(ranges) == 3
    assert all(asked is not None and 0 < int(asked[6:-1]) <= 200_000 for asked in ranges[1:])


def test_a_server_that_ignores_ranges_is_read_on_from_its_start(hub: Any, sources: Sources, cache: Cache) -> None:
    path = hub.weights_path
    hub.cdn.faults[path] = [hub.cut(hub.weights, 100_000), hub.cut(hub.weights, len(hub.weights))]
    cached = cache.copy(sources, URI, "adapter", "v1")
    assert (cached.directory / "adapter_model.safetensors").read_bytes() == hub.weights


def test_a_full_disk_is_no_capacity_and_leaves_nothing(
    hub: Any, sources: Sources, cache: Cache, unfinished: Any
) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))  # writes end as on a disk that is full
    try:
        fault = refusal(cache, sources)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert fault.code == "NoCapacity"
    assert unfinished() == []


def test_a_later_try_keeps_the_files_that_came_whole(
    hub: Any, sources: Sources, tmp_path: Path, unfinished: Any
) -> None:
    shards = {f"model-{number}.safetensors": bytes([number]) * 100_000 for number in (1, 2)}
    files = {"config.json": b"{}", **shards, "model.safetensors.index.json": b"{}"}
    hub.put("acme/large", hub.commit, files, "main")
    first, second = (f"/{hashlib.sha256(content).hexdigest()}" for content in shards.values())
    cache = Cache(tmp_path / "cache", 400_000, tuple)
    hub.cdn.faults[second] = [hub.cut(shards["model-2.safetensors"], 50_000), *[hub.status(500)] * 3]
    with pytest.raises(GraftError):
        cache.copy(sources, "hf://acme/large", "model")
    (left,) = unfinished()
    assert sorted(path.name for path in left.iterdir()) == ["config.json", "model-1.safetensors"]
    cached = cache.copy(sources, "hf://acme/large", "model")
    assert {path.name: path.read_bytes() for path in cached.directory.iterdir()} == files
    assert hub.cdn.paths(first) == [first]
    assert unfinished() == []


def test_what_is_kept_for_a_later_try_makes_room_for_others(
    hub: Any, sources: Sources, tmp_path: Path, unfinished: Any
) -> None:
    cache = Cache(tmp_path / "cache", len(hub.weights) + 1000, tuple)
    files = {"config.json": b"{}", "model.safetensors.index.json": b"{}"}
    files |= {f"model-{number}.safetensors": number.encode() * 100_000 for number in "12"}
    hub.put("acme/large", hub.commit, files, "main")
    hub.cdn.faults[f"/{hashlib.sha256(files['model-2.safetensors']).hexdigest()}"] = [hub.status(500)] * 9
    with pytest.raises(GraftError):
        cache.copy(sources, "hf://acme/large", "model")
    assert len(unfinished()) == 1
    assert cache.copy(sources, URI, "adapter", "v1").revision == hub.commit
    assert unfinished() == []


def test_a_file_that_changed_after_a_cut_is_refused(hub: Any, sources: Sources, cache: Cache) -> None:
    hub.cdn.faults[hub.weights_path] = [hub.cut(hub.weights, 100_000)]
    hub.cdn.headers[hub.weights_path]["ETag"] = '"another"'
    fault = refusal(cache, sources)
    assert (fault.code, "changed" in fault.message) == ("SourceUnavailable", True)


def test_other_bytes_than_listed_are_refused(hub: Any, sources: Sources, cache: Cache, tmp_path: Path) -> None:
    hub.cdn.files[hub.weights_path] = hub.weights[::-1]
    fault = refusal(cache, sources)
    assert (fault.code, hashlib.sha256(hub.weights).hexdigest() in fault.message) == ("DigestMismatch", True)
    assert list((tmp_path / "cache" / "sha256").iterdir()) == []


@pytest.mark.parametrize("content", [b"short", b"x" * 600_000])
def test_another_size_than_listed_is_refused(hub: Any, sources: Sources, cache: Cache, content: bytes) -> None:
    hub.cdn.files[hub.weights_path] = content
    assert refusal(cache, sources).code == "DigestMismatch"


def test_a_small_file_that_differs_from_the_listing_is_refused(hub: Any, sources: Sources, cache: Cache) -> None:
    path = CONFIG_PATH.format(hub.commit)
    hub.files[path] = hub.files[path][::-1]
    assert refusal(cache, sources).code == "DigestMismatch"


def test_a_slow_source_is_given_up(hub: Any, sources: Sources, cache: Cache) -> None:
    def drip(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(hub.weights)))
        handler.end_headers()
        while not hub.cdn.stopping.wait(0.02):
            try:
                handler.wfile.write(b"x")
            except OSError:
                break
        handler.close_connection = True

    hub.cdn.faults[hub.weights_path] = [drip] * 9
    fault = refusal(cache, sources)
    assert (fault.code, "bytes took" in fault.message) == ("SourceUnavailable", True)


def test_what_the_hub_lists_as_too_large_is_not_asked_for(hub: Any, sources: Sources, tmp_path: Path) -> None:
    cache = Cache(tmp_path / "small", None, tuple, adapter_bytes=len(hub.weights))
    assert refusal(cache, sources).code == "TooLarge"
    assert hub.cdn.paths() == []


def test_more_than_the_cache_holds_is_no_capacity(hub: Any, sources: Sources, tmp_path: Path, unfinished: Any) -> None:
    cache = Cache(tmp_path / "small", len(hub.weights) // 10, tuple)
    for _ in range(2):
        assert refusal(cache, sources).code == "NoCapacity"
    assert unfinished() == []
    assert sum(len(hub.cdn.files[path]) for path in hub.cdn.paths()) <= 2 * len(hub.weights)


@pytest.mark.parametrize(
    "listing",
    [
        b"<html>",
        b"[]",
        json.dumps({"sha": "main", "siblings": []}).encode(),
        json.dumps({"sha": "a" * 40}).encode(),
        json.dumps({"sha": "a" * 40, "siblings": [{"rfilename": "x", "size": -1}]}).encode(),
    ],
)
def test_an_answer_that_is_no_listing_is_told(hub: Any, sources: Sources, cache: Cache, listing: bytes) -> None:
    hub.files[hub.info_path("acme/sql", "v1")] = listing
    assert refusal(cache, sources).code == "SourceUnavailable"


def test_folders_of_modules_come_with_a_base_and_others_do_not(hub: Any, sources: Sources, cache: Cache) -> None:
    others = {"onnx/config.json": b"{}", "1_Pooling/README.md": b"words", "0_A/1_Pooling/config.json": b"{}"}
    hub.put("acme/embedder", hub.commit, embedder() | others, "main")
    copied = cache.copy(sources, "hf://acme/embedder", "model").directory
    files = {path.relative_to(copied).as_posix(): path.read_bytes() for path in copied.rglob("*") if path.is_file()}
    assert files == embedder()


@pytest.mark.parametrize(
    "path",
    [
        "../adapter_model.safetensors",
        "/etc/passwd.safetensors",
        "a/../../b.safetensors",
        "1_Dense/../model.safetensors",
        "../2_Dense/model.safetensors",
    ],
)
def test_a_listing_cannot_name_files_elsewhere(hub: Any, sources: Sources, cache: Cache, path: str) -> None:
    hub.put("acme/evil", hub.commit, {"config.json": b"{}", "model.safetensors": b"w", path: b"evil"}, "main")
    cached = cache.copy(sources, "hf://acme/evil", "model")
    assert sorted(found.name for found in cached.directory.iterdir()) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize(
    "uri", ["hf://acme", "hf://acme/", "hf:///sql", "hf://acme/sql/../x", "hf://acme/--", "hf://a b/c"]
)
def test_what_names_no_repository(sources: Sources, cache: Cache, uri: str) -> None:
    assert refusal(cache, sources, uri).code == "NotFound"


def test_loopback_is_refused_unless_allowed(hub: Any, secret: Path, cache: Cache) -> None:
    mount = SourceMount(name="acme", kind="remote", uri_prefixes=("hf://acme/",), endpoint=hub.url)
    guarded = Sources((mount,), {"acme": secret})
    fault = refusal(cache, guarded)
    assert (fault.code, "127.0.0.1" in fault.message) == ("ForbiddenAddress", True)
    assert hub.asked == []
    guarded.close()


@pytest.mark.parametrize(
    "target", ["http://169.254.169.254/latest", "http://[fd00:ec2::254]/", "http://10.0.0.1/", "file:///etc"]
)
def test_a_redirect_elsewhere_is_refused(
    hub: Any, sources: Sources, cache: Cache, target: str, unfinished: Any
) -> None:
    path = CONFIG_PATH.format(hub.commit)
    hub.redirects[path] = target
    assert refusal(cache, sources).code in {"ForbiddenAddress", "SourceUnavailable"}
    assert unfinished() == []


def test_another_commit_than_asked_for_is_refused(hub: Any, sources: Sources, cache: Cache) -> None:
    listing = hub.info_path("acme/sql", hub.commit)
    hub.files[listing] = hub.files[hub.info_path("acme/sql", "main")]
    assert refusal(cache, sources, revision=hub.commit).code == "DigestMismatch"


def test_redirects_in_circles_end(hub: Any, sources: Sources, cache: Cache) -> None:
    path = CONFIG_PATH.format(hub.commit)
    hub.redirects[path] = hub.url + path
    assert refusal(cache, sources).code == "SourceUnavailable"


def test_the_library_itself_takes_our_server_for_the_hub(
    hub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    api = huggingface_hub.HfApi(endpoint=hub.url, token=False)
    info = api.model_info("acme/sql", revision="v1", files_metadata=True)
    assert info.sha == hub.commit
    sizes = {sibling.rfilename: sibling.size for sibling in info.siblings or ()}
    assert sizes["adapter_model.safetensors"] == len(hub.weights)
    path = api.hf_hub_download("acme/sql", "adapter_config.json", revision=hub.commit, local_dir=tmp_path / "local")
    assert Path(path).read_bytes() == hub.config
    huggingface_hub.close_session()
