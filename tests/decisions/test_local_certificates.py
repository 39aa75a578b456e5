"""The certificates of a local cluster."""

from __future__ import annotations

import stat
from pathlib import Path

import yaml
from cryptography import x509
from graft_local.certificates import IDENTITIES, ensure_certificates, kubeconfig_of
from graft_local.network import ClusterNetwork

NETWORK = ClusterNetwork(3)


def test_the_api_server_is_certified_for_its_addresses_by_the_authority(tmp_path: Path) -> None:
    certificates = ensure_certificates(tmp_path, NETWORK)
    authority = x509.load_pem_x509_certificate(certificates.authority.read_bytes())
    certificate = x509.load_pem_x509_certificate(certificates.api_server.certificate.read_bytes())
    certificate.verify_directly_issued_by(authority)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    addresses = {NETWORK.control_plane_address, NETWORK.service_range[1]}
    assert set(names.get_values_for_type(x509.IPAddress)) == addresses


def test_each_identity_has_a_kubeconfig_with_its_groups(tmp_path: Path) -> None:
    ensure_certificates(tmp_path, NETWORK)
    kubeconfig = yaml.safe_load(kubeconfig_of(tmp_path, "admin").read_text())
    assert kubeconfig["clusters"][0]["cluster"]["server"] == NETWORK.api_server_url
    admin = x509.load_pem_x509_certificate((tmp_path / "pki" / "admin.crt").read_bytes())
    assert admin.subject.rfc4514_string() == "CN=graft-local-admin,O=system:masters"
    assert all(kubeconfig_of(tmp_path, identity).exists() for identity in IDENTITIES)


def test_private_keys_are_for_the_owner_alone(tmp_path: Path) -> None:
    ensure_certificates(tmp_path, NETWORK)
    private = [*tmp_path.rglob("*.key"), *(kubeconfig_of(tmp_path, identity) for identity in IDENTITIES)]
    assert len(private) >= 8
    assert {stat.S_IMODE(path.stat().st_mode) for path in private} == {0o600}


def test_they_are_made_once(tmp_path: Path) -> None:
    ensure_certificates(tmp_path, NETWORK)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    ensure_certificates(tmp_path, NETWORK)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
