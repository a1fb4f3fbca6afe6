"""The rule that keeps pages of other origins out, over every combination of what browsers say."""

from __future__ import annotations

from http import HTTPStatus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assignment_workers.origins import Origins

OURS = Origins.of("gateway.example, .dialer.example", "https://page.example/", listens="127.0.0.1")
HERE = ("127.0.0.1:8000", "localhost", "[::1]:8000", "gateway.example", "a.dialer.example:443")
ELSEWHERE = ("evil.example", "evil.example:8000", "gateway.example.evil.example", "dialer.example")
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
names = st.from_regex(r"\A[a-z][a-z0-9-]{0,10}(\.[a-z][a-z0-9-]{0,10}){0,2}\Z")


def status(method: str = "GET", **headers: str) -> HTTPStatus | None:
    said = {name.replace("_", "-"): value for name, value in headers.items()}
    found = OURS.refusal(method, said)
    return found.status if found else None


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("host", HERE)
def test_its_own_names_and_its_own_pages_are_let_in(method: str, host: str) -> None:
    assert status(method, host=host) is None
    assert status(method, host=host, origin=f"http://{host}", sec_fetch_site="same-origin") is None
    assert status(method, host=host, origin="https://page.example") is None
    assert status(method) is None, "a program that names no host is no browser"


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("host", ELSEWHERE)
def test_a_name_that_is_not_its_own_is_misdirected(method: str, host: str) -> None:
    said = {"host": host, "origin": f"http://{host}", "sec_fetch_site": "same-origin"}
    assert status(method, **said) == HTTPStatus.MISDIRECTED_REQUEST


@given(method=st.sampled_from(METHODS), host=st.sampled_from(HERE), page=names, port=st.integers(1))
def test_no_page_of_another_origin_is_let_in(method: str, host: str, page: str, port: int) -> None:
    for origin in ("null", f"http://{page}", f"http://{page}:{port}", f"http://{host}{port}"):
        assert status(method, host=host, origin=origin) == HTTPStatus.FORBIDDEN


@given(
    method=st.sampled_from(METHODS),
    site=st.sampled_from(["cross-site", "same-site"]),
    mode=st.sampled_from(["cors", "no-cors", "navigate", "websocket", ""]),
    dest=st.sampled_from(["document", "iframe", "frame", "embed", "image", "script", "empty"]),
)
def test_of_what_another_site_asks_for_a_link_alone_is_followed(
    method: str, site: str, mode: str, dest: str
) -> None:
    said = {"host": HERE[0], "sec_fetch_site": site, "sec_fetch_mode": mode, "sec_fetch_dest": dest}
    follows = method in {"GET", "HEAD"} and mode == "navigate" and dest == "document"
    assert status(method, **said) == (None if follows else HTTPStatus.FORBIDDEN)


def test_a_star_lets_every_name_in_and_no_page() -> None:
    every = Origins.of("*")
    assert every.refusal("GET", {"host": "evil.example"}) is None
    assert every.refusal("POST", {"host": "a.example", "origin": "http://b.example"}) is not None
