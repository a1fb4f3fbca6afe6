"""The certificates that a stack is configured with, or is shown, are found, and their times read."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from assignment_workers.health.certificates import SSL_REQUEST, reader
from assignment_workers.settings import Settings

NOW = datetime.now(UTC).replace(microsecond=0)
SOON, LATE = NOW + timedelta(days=3), NOW + timedelta(days=300)


def certificate(expires: datetime) -> tuple[bytes, bytes]:
    """Key and certificate in PEM form."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "dialer")])
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(NOW - timedelta(days=400))
        .not_valid_after(expires)
        .sign(key, hashes.SHA256())
    )
    form, none = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    pem = serialization.Encoding.PEM
    return key.private_bytes(pem, form, none), made.public_bytes(pem)


def file(folder: Path, *expiries: datetime) -> Path:
    path = folder / f"{len(list(folder.iterdir()))}.pem"
    path.write_bytes(b"".join(certificate(each)[1] for each in expiries))
    return path


def settings(**said: Any) -> Settings:
    return Settings.from_environment({name: str(each) for name, each in said.items()})


def read(**said: Any) -> dict[str, datetime | str | None]:
    found = reader(settings(**said))()
    return {each.title: each.expires_at or each.trouble for each in found}


def test_the_files_of_each_address_are_read(tmp_path: Path) -> None:
    """Of authorities one that is to come keeps the others; of a chain each is needed."""
    bundle, chain = file(tmp_path, SOON, LATE), file(tmp_path, LATE, SOON)
    assert read(
        DATABASE_URL=f"postgresql:///dialer?sslrootcert={bundle}&sslcert={chain}&sslmode=disable",
        REDIS_URL=f"sentinel://a/0?ssl_ca_certs={bundle}&ssl_certfile={chain}",
        CRM_DATABASE_URL=f"mysql://crm@db/crm?ssl_ca={bundle}&ssl_cert={chain}",
        ASSIGNMENT_WORKERS_CERTIFICATES=f" {bundle}, {chain}",
    ) == {
        "sslrootcert for PostgreSQL": LATE,
        "sslcert for PostgreSQL": SOON,
        "ssl_ca_certs for Redis": LATE,
        "ssl_certfile for Redis": SOON,
        "ssl_ca for the CRM": LATE,
        "ssl_cert for the CRM": SOON,
        "certificate 1 of ASSIGNMENT_WORKERS_CERTIFICATES": SOON,
        "certificate 2 of ASSIGNMENT_WORKERS_CERTIFICATES": SOON,
    }


def test_a_file_that_cannot_be_read_says_so_without_its_path(tmp_path: Path) -> None:
    empty = tmp_path / "empty.pem"
    empty.write_text("no certificate")
    address = f"host=/run dbname=dialer sslrootcert={empty} sslcert={tmp_path / 'none.pem'}"
    assert read(DATABASE_URL=address) == {
        "sslrootcert for PostgreSQL": "is in a file without a certificate",
        "sslcert for PostgreSQL": "is in a file that cannot be read",
    }


def test_without_tls_there_is_nothing_to_read() -> None:
    assert read(DATABASE_URL="postgresql:///dialer", REDIS_URL="redis://127.0.0.1:1/0") == {}


@contextmanager
def serving(folder: Path, greet: Callable[[socket.socket], bool]) -> Iterator[int]:
    """A server with TLS and a certificate of `SOON`, after what `greet` does: its port."""
    key, shown = certificate(SOON)
    (folder / "own.pem").write_bytes(key + shown)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(folder / "own.pem")

    def serve() -> None:
        while True:
            try:
                line, _ = listening.accept()
            except OSError:
                return
            with line:
                if greet(line):
                    tls.wrap_socket(line, server_side=True).close()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=serve, daemon=True).start()
        yield listening.getsockname()[1]
        listening.shutdown(socket.SHUT_RDWR)


def _asked(line: socket.socket) -> bool:
    assert line.recv(len(SSL_REQUEST)) == SSL_REQUEST
    line.sendall(b"S")
    return True


@pytest.mark.parametrize(
    ("variable", "address", "title", "greet"),
    [
        ("REDIS_URL", "rediss://127.0.0.1:{}/0", "the certificate of Redis", lambda _: True),
        ("BROKER_URL", "amqps://127.0.0.1:{}//", "the certificate of the broker", lambda _: True),
        (
            "ASSIGNMENT_WORKERS_CERTIFICATES",
            "https://127.0.0.1:{}",
            "certificate 1 of ASSIGNMENT_WORKERS_CERTIFICATES",
            lambda _: True,
        ),
        ("DATABASE_URL", "postgresql://127.0.0.1:{}/d", "the certificate of PostgreSQL", _asked),
    ],
)
def test_the_certificate_that_a_server_shows_is_read(
    tmp_path: Path,
    variable: str,
    address: str,
    title: str,
    greet: Callable[[socket.socket], bool],
) -> None:
    with serving(tmp_path, greet) as port:
        assert read(**{variable: address.format(port)}) == {title: SOON}


def test_a_postgresql_without_tls_shows_none(tmp_path: Path) -> None:
    def refuse(line: socket.socket) -> bool:
        line.recv(len(SSL_REQUEST))
        line.sendall(b"N")
        return False

    with serving(tmp_path, refuse) as port:
        assert read(DATABASE_URL=f"postgresql://127.0.0.1:{port}/dialer") == {}
