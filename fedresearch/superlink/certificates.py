"""Temporary certificates of a SuperLink and keys of SuperNodes, for one run on one machine."""

import ipaddress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import NameOID

from fedresearch.hardware.scratch import write_secret


def write_certificates(folder: Path, host: str) -> tuple[list[str], list[str]]:
    """Make a certificate authority and its server certificate for an IP address.

    Returns
    -------
    tuple of list of str
        The arguments of a SuperLink, and those of its clients; the last argument of a client is the certificate of the
        authority.
    """
    authority_key, server_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    issuer, subject = (x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]) for name in ("throw-away CA", host))
    now = datetime.now(UTC)

    def certificate(name: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(days=365))
        )

    authority = certificate(issuer, authority_key).add_extension(x509.BasicConstraints(True, None), critical=True)
    alternatives = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(host))])
    server = certificate(subject, server_key).add_extension(alternatives, critical=False)
    ca, crt, key = (str(folder / name) for name in ("ca.pem", "server.pem", "server.key"))
    Path(ca).write_bytes(authority.sign(authority_key, hashes.SHA256()).public_bytes(Encoding.PEM))
    Path(crt).write_bytes(server.sign(authority_key, hashes.SHA256()).public_bytes(Encoding.PEM))
    write_secret(Path(key), _pem(server_key, PrivateFormat.TraditionalOpenSSL))
    return ["--ssl-certfile", crt, "--ssl-keyfile", key, "--ssl-ca-certfile", ca], ["--root-certificates", ca]


def write_node_key(folder: Path, partition_id: int) -> tuple[str, str]:
    """Make the key pair of a SuperNode, and return the files of the private and the public key."""
    key = ec.generate_private_key(ec.SECP384R1())
    private, public = folder / f"node-{partition_id}.key", folder / f"node-{partition_id}.pub"
    write_secret(private, _pem(key, PrivateFormat.OpenSSH))
    public.write_bytes(key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH))
    return str(private), str(public)


def _pem(key: ec.EllipticCurvePrivateKey, kind: PrivateFormat) -> str:
    return key.private_bytes(Encoding.PEM, kind, NoEncryption()).decode()
