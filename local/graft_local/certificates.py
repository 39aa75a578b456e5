"""The certificates and keys of one local cluster, and the kubeconfigs made from them."""

from __future__ import annotations

import base64
import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from graft_process_node.kube.kubeconfig import kubeconfig

from graft_local.network import ClusterNetwork

_TEN_YEARS = datetime.timedelta(days=3652)
_MADE = "made"


@dataclass(frozen=True)
class Files:
    """A certificate and its private key, in PEM files."""

    certificate: Path
    key: Path


@dataclass(frozen=True)
class Certificates:
    """Where the certificates and keys of a cluster lie: in the directory `pki` of its state directory."""

    directory: Path

    @property
    def authority(self) -> Path:
        return self.directory / "ca.crt"

    @property
    def api_server(self) -> Files:
        return self._files("api-server")

    @property
    def kubelet_client(self) -> Files:
        """What the API server shows the node agent; the agent's own certificate is its own affair."""
        return self._files("kubelet-client")

    @property
    def service_account(self) -> Files:
        """The pair that signs service accounts' tokens; `certificate` holds the bare public key."""
        return Files(self.directory / "service-account.pub", self.directory / "service-account.key")

    def _files(self, name: str) -> Files:
        return Files(self.directory / f"{name}.crt", self.directory / f"{name}.key")


IDENTITIES = {
    "admin": ("graft-local-admin", ("system:masters",)),
    "kube-controller-manager": ("system:kube-controller-manager", ()),
    "kube-scheduler": ("system:kube-scheduler", ()),
    # The node agent is kubelet, volume provisioner and token issuer in one, for every pod: it has all rights.
    "node": ("graft-local-node", ("system:masters",)),
    "services": ("graft-local-services", ("system:masters",)),
}
"""Who gets a kubeconfig: name → user name and groups."""


def certificates_of(state: Path) -> Certificates:
    """The certificates of the cluster in the directory `state`."""
    return Certificates(state / "pki")


def kubeconfig_of(state: Path, identity: str) -> Path:
    """The kubeconfig of one of `IDENTITIES`. The admin's lies where a person looks for it."""
    return state / "kubeconfig" if identity == "admin" else state / "pki" / f"{identity}.kubeconfig"


def ensure_certificates(state: Path, network: ClusterNetwork) -> Certificates:
    """Make all certificates, keys and kubeconfigs of a cluster, unless they were made before."""
    certificates = certificates_of(state)
    directory = certificates.directory
    if (directory / _MADE).exists():
        return certificates
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    authority = _Authority()
    certificates.authority.write_bytes(authority.certificate_pem)
    names = "DNS:kubernetes DNS:kubernetes.default DNS:kubernetes.default.svc DNS:localhost"
    addresses = f"IP:{network.control_plane_address} IP:{network.service_range[1]}"
    authority.issue(certificates.api_server, "kube-apiserver", names=f"{names} {addresses}".split())
    authority.issue(certificates.kubelet_client, "kube-apiserver-kubelet-client", groups=["system:masters"])
    _write_service_account_keys(certificates.service_account)
    for identity, (user, groups) in IDENTITIES.items():
        files = Files(directory / f"{identity}.crt", directory / f"{identity}.key")
        authority.issue(files, user, groups=groups)
        _write_kubeconfig(kubeconfig_of(state, identity), network.api_server_url, certificates.authority, files)
    (directory / _MADE).touch()
    return certificates


class _Authority:
    """A certificate authority whose key is nowhere but in memory: a cluster's certificates are made once."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name("graft-local-ca")
        self._certificate = (
            _builder(self._name, self._name, self._key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(signs_certificates=True), critical=True)
            .sign(self._key, hashes.SHA256())
        )

    @property
    def certificate_pem(self) -> bytes:
        return self._certificate.public_bytes(serialization.Encoding.PEM)

    def issue(self, files: Files, name: str, *, groups: Sequence[str] = (), names: Sequence[str] = ()) -> None:
        """Write a certificate for `name`; `names` are `DNS:…` and `IP:…`."""
        key = ec.generate_private_key(ec.SECP256R1())
        usages = [ExtendedKeyUsageOID.CLIENT_AUTH, *([ExtendedKeyUsageOID.SERVER_AUTH] if names else [])]
        builder = (
            _builder(_name(name, groups), self._name, key.public_key())
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        )
        if names:
            builder = builder.add_extension(
                x509.SubjectAlternativeName([_general_name(n) for n in names]), critical=False
            )
        certificate = builder.sign(self._key, hashes.SHA256())
        files.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        _write_private_key(files.key, key)


def _name(common_name: str, groups: Sequence[str] = ()) -> x509.Name:
    organizations = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, group) for group in groups]
    return x509.Name([*organizations, x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + _TEN_YEARS)
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(text: str) -> x509.GeneralName:
    kind, _, value = text.partition(":")
    return x509.IPAddress(ip_address(value)) if kind == "IP" else x509.DNSName(value)


def _write_private_key(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    _write_private(path, pem)


def _write_service_account_keys(files: Files) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    _write_private_key(files.key, key)
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    files.certificate.write_bytes(public)


def _write_kubeconfig(path: Path, server: str, authority: Path, files: Files) -> None:
    credentials = {"client-certificate-data": files.certificate, "client-key-data": files.key}
    embedded = {field: base64.b64encode(file.read_bytes()).decode() for field, file in credentials.items()}
    config = kubeconfig(server, authority.read_bytes(), embedded)
    _write_private(path, yaml.safe_dump(config, sort_keys=False).encode())


def _write_private(path: Path, content: bytes) -> None:
    path.touch(mode=0o600)
    path.write_bytes(content)
