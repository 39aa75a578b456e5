"""A source's token goes to the hosts that its Secret names, and a service account's to none."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from graft_runtime.contract.config import SourceMount
from graft_runtime.errors import GraftError
from graft_runtime.store.cache import Cache
from graft_runtime.store.fetches import retry_seconds
from graft_runtime.store.network import parse_network
from graft_runtime.store.sources import Sources

URI = "hf://acme/sql"


def refusal(cache: Cache, sources: Sources, uri: str = URI) -> GraftError:
    with pytest.raises(GraftError) as caught:
        cache.copy(sources, uri, "adapter", "v1")
    return caught.value


def signed(**claims: str) -> str:
    """A token as Kubernetes and other issuers make them."""
    parts = ({"alg": "RS256"}, claims)
    encoded = [base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts]
    return ".".join((*encoded, "c2lnbmF0dXJl"))


@pytest.mark.parametrize("hosts", [None, "", "hub.example", "127.0.0.1", "*", "127.0.0.1:1 evil.example"])
def test_a_token_that_is_not_for_the_host_is_not_sent(
    hub: Any, sources: Sources, cache: Cache, secret: Path, hosts: str | None
) -> None:
    (secret / "hosts").unlink()
    if hosts is not None:
        (secret / "hosts").write_text(hosts)
    fault = refusal(cache, sources)
    host = hub.url.removeprefix("http://")
    assert fault.code == "TokenNotBound"
    assert f"the Secret of the source `acme` does not say that its token is for `{host}`" in fault.message
    assert f"hint: if it is meant for that host, add {host} to the Secret's key `hosts`" in fault.message
    assert retry_seconds(fault.code, 0) is not None, "the Secret may be corrected"
    assert hub.asked == []


@pytest.mark.parametrize("hosts", ["{}", "hub.example, {}", "hub.example\n{}\n", "  {}\t,other.example"])
def test_a_secret_names_its_hosts_and_may_be_corrected(
    hub: Any, sources: Sources, cache: Cache, secret: Path, hosts: str
) -> None:
    hub.token = "hf_very_secret"
    (secret / "hosts").write_text("other.example")
    refusal(cache, sources)
    (secret / "hosts").write_text(hosts.format(hub.url.removeprefix("http://")))
    assert cache.copy(sources, URI, "adapter", "v1").revision == hub.commit


@pytest.mark.parametrize("subject", ["system:serviceaccount:team-a:deployer", "system:serviceaccount:kube-system:x"])
def test_a_token_of_a_service_account_is_sent_nowhere(
    hub: Any, sources: Sources, cache: Cache, secret: Path, subject: str
) -> None:
    token = signed(iss="kubernetes/serviceaccount", sub=subject)
    (secret / "token").write_text(token)
    fault = refusal(cache, sources)
    assert (fault.code, "service account" in fault.message, token in fault.message) == ("TokenNotBound", True, False)
    assert hub.asked == []


@pytest.mark.parametrize(
    "token", [signed(sub="user@example"), "a.b.c", "..", "hf_x.eyJ4", signed(), "a.W1tb.c", "a.MTI.c"]
)
def test_other_tokens_with_dots_are_tokens(hub: Any, sources: Sources, cache: Cache, secret: Path, token: str) -> None:
    hub.token = token
    (secret / "token").write_text(token)
    assert cache.copy(sources, URI, "adapter", "v1").revision == hub.commit


@pytest.fixture
def limited(hub: Any) -> Callable[..., Sources]:
    """Sources whose hosts the administrator lists."""
    mount = SourceMount(name="acme", kind="remote", uri_prefixes=("hf://acme/",), endpoint=hub.url)
    return lambda *hosts: Sources((mount,), {}, (parse_network("127.0.0.0/8"),), allowed_hosts=hosts)


def test_hosts_that_the_administrator_does_not_list_are_not_even_looked_up(
    hub: Any, limited: Callable[..., Sources], cache: Cache
) -> None:
    sources = limited("hub.example", "*.0.0.1.example")
    fault = refusal(cache, sources)
    assert (fault.code, "allowedEndpoints" in fault.message) == ("ForbiddenAddress", True)
    assert "the host `127.0.0.1` is none of those" in fault.message
    assert hub.asked == []
    sources.close()


def test_a_redirect_to_a_host_that_is_not_listed_is_refused(
    hub: Any, limited: Callable[..., Sources], cache: Cache
) -> None:
    weights = f"/acme/sql/resolve/{hub.commit}/adapter_model.safetensors"
    hub.redirects[weights] = f"{hub.cdn.url.replace('127.0.0.1', 'localhost')}{hub.weights_path}"
    sources = limited("127.0.0.1")
    fault = refusal(cache, sources)
    assert (fault.code, "`localhost`" in fault.message) == ("ForbiddenAddress", True)
    assert hub.cdn.asked == []
    sources.close()
    both = limited("127.0.0.1", "localhost")
    assert cache.copy(both, URI, "adapter", "v1").revision == hub.commit
    both.close()
