"""The expiry of TLS certificates: those in configured files, and those that servers present.

The texts about certificates contain no host, address or path, because pages and `/v1/health` show
them.
"""

from __future__ import annotations

import socket
import ssl
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from assignment_workers.addresses import SENTINEL, SentinelAddress, hosts_of, is_postgres
from assignment_workers.errors import UsageError
from assignment_workers.health.readings import CertificateFacts
from assignment_workers.schema.engine import parameters_of
from assignment_workers.settings import Settings

AGAIN_SECONDS = 30.0
"""Seconds after which the certificates are read again."""
ANSWER_SECONDS = 1.0
"""The most seconds to open a connection to a server, and the most seconds for each later step.

The later steps are the request for TLS, with PostgreSQL only, and the TLS handshake.
"""
HANDSHAKES = 4
"""The greatest number of servers from which certificates are read at the same time."""
POSTGRES_PORT, REDIS_PORT, AMQPS_PORT, HTTPS_PORT = 5432, 6379, 5671, 443
SSL_REQUEST = struct.pack("!ii", 8, 80877103)
"""The message by which a PostgreSQL client requests TLS.

The server answers with the letter S if it accepts TLS, and N if it does not.
"""


@dataclass(frozen=True)
class _CertificateFile:
    """A PEM file that contains either certificates of authorities or a certificate chain.

    `read` returns one certificate of the file. Of a chain, `read` returns the certificate that
    expires first, because the chain is invalid from then on. Of certificates of authorities, `read`
    returns the one that expires last, because the certificate of a new authority is added to the
    file before the old one expires.
    """

    title: str
    path: Path
    authorities: bool = False

    def read(self) -> CertificateFacts:
        from cryptography import x509

        try:
            found = x509.load_pem_x509_certificates(self.path.read_bytes())
        except OSError:
            return CertificateFacts(self.title, trouble="is in a file that cannot be read")
        except ValueError:
            return CertificateFacts(self.title, trouble="is in a file without a certificate")
        which = max if self.authorities else min
        one = which(found, key=lambda each: each.not_valid_after_utc)
        return CertificateFacts(self.title, one.not_valid_before_utc, one.not_valid_after_utc)


@dataclass(frozen=True)
class _TlsServer:
    """A server whose certificate is read from its TLS handshake."""

    title: str
    host: str
    port: int
    asks: bool = False
    """True for PostgreSQL, where a client first requests TLS by a message."""

    def read(self) -> CertificateFacts | None:
        """Return the server's certificate; None if the server shows none or does not answer."""
        from cryptography import x509

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        # An expired certificate is to be read too, and nothing is sent over this connection.
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        try:
            with socket.create_connection((self.host, self.port), ANSWER_SECONDS) as line:
                if self.asks:
                    line.sendall(SSL_REQUEST)
                    if line.recv(1) != b"S":
                        return None
                with context.wrap_socket(line, server_hostname=self.host) as shown:
                    certificate = shown.getpeercert(binary_form=True)
        except (OSError, ValueError):
            return None
        if certificate is None:
            return None
        one = x509.load_der_x509_certificate(certificate)
        return CertificateFacts(self.title, one.not_valid_before_utc, one.not_valid_after_utc)


_CertificateSource = _CertificateFile | _TlsServer


def reader(settings: Settings) -> Callable[[], list[CertificateFacts]]:
    """Return a function that reads the TLS certificates of all configured files and servers.

    A second call within 30 seconds (`AGAIN_SECONDS`) returns the certificates that were read last.
    A server that does not answer in time, or shows no certificate, is left out.
    """
    sources = list(_sources(settings))
    found: list[CertificateFacts] = []
    again = 0.0

    def read() -> list[CertificateFacts]:
        nonlocal found, again
        if sources and time.monotonic() >= again:
            with ThreadPoolExecutor(HANDSHAKES, "certificates") as threads:
                found = [each for each in threads.map(lambda one: one.read(), sources) if each]
            again = time.monotonic() + AGAIN_SECONDS
        return found

    return read


def _sources(settings: Settings) -> Iterator[_CertificateSource]:
    if settings.database_url is not None:
        yield from _of_postgres("PostgreSQL", settings.database_url)
    if settings.redis_url is not None:
        yield from _of_broker("Redis", settings.redis_url)
    if settings.broker_url is not None:
        yield from _of_broker("the broker", settings.broker_url)
    if settings.crm_database_url is not None:
        yield from _of_crm(settings.crm_database_url)
    yield from _watched(settings.certificates or "")


def _of_postgres(title: str, url: str) -> Iterator[_CertificateSource]:
    try:
        parameters = parameters_of(url)
        servers = hosts_of(parameters)
    except (UsageError, ValueError):
        return  # the connection itself reports it
    yield from _files(title, parameters, authorities=("sslrootcert",), chains=("sslcert",))
    if parameters.get("sslmode") == "disable":
        return
    for number, each in enumerate(servers, 1):
        host = each.get("hostaddr") or each.get("host", "")
        if host and not host.startswith(("/", "@")):
            port = int(each.get("port", POSTGRES_PORT))
            yield _TlsServer(_shown_by(title, number, len(servers)), host, port, asks=True)


def _of_broker(title: str, url: str) -> Iterator[_CertificateSource]:
    names = {"authorities": ("ssl_ca_certs",), "chains": ("ssl_certfile",)}
    if url.startswith(SENTINEL):
        yield from _files(title, SentinelAddress.read(url).tls, **names)
        return
    parts = urlsplit(url)
    yield from _files(title, dict(parse_qsl(parts.query)), **names)
    if parts.scheme in {"rediss", "amqps"} and parts.hostname:
        usual = REDIS_PORT if parts.scheme == "rediss" else AMQPS_PORT
        yield _TlsServer(_shown_by(title, 1, 1), parts.hostname, parts.port or usual)


def _of_crm(url: str) -> Iterator[_CertificateSource]:
    if is_postgres(url):
        yield from _of_postgres("the CRM", url)
    else:
        # MySQL greets a client before TLS begins, so its own certificate is not read here.
        query = dict(parse_qsl(urlsplit(url).query))
        yield from _files("the CRM", query, authorities=("ssl_ca",), chains=("ssl_cert",))


def _watched(said: str) -> Iterator[_CertificateSource]:
    for number, each in enumerate(filter(None, (one.strip() for one in said.split(","))), 1):
        title = f"certificate {number} of ASSIGNMENT_WORKERS_CERTIFICATES"
        if each.startswith("https://"):
            parts = urlsplit(each)
            yield _TlsServer(title, parts.hostname or "", parts.port or HTTPS_PORT)
        else:
            yield _CertificateFile(title, Path(each))


def _files(
    title: str,
    parameters: Mapping[str, str],
    *,
    authorities: Iterable[str],
    chains: Iterable[str],
) -> Iterator[_CertificateFile]:
    for names, are_authorities in ((authorities, True), (chains, False)):
        for name in names:
            path = parameters.get(name)
            if path and path != "system":
                yield _CertificateFile(
                    f"{name} for {title}", Path(path), authorities=are_authorities
                )


def _shown_by(title: str, number: int, count: int) -> str:
    return f"the certificate of {title}" + (f", server {number}" if count > 1 else "")
