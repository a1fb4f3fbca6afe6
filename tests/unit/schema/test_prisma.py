"""An address with Prisma's parameters is understood, or the parameter is named with its remedy."""

from __future__ import annotations

import itertools

import pytest
from sqlalchemy import create_engine, make_url

from assignment_workers.errors import UsageError
from assignment_workers.schema.dialer_schema import in_schema
from assignment_workers.schema.engine import driver_url, locate_dialer
from assignment_workers.schema.external_crm import reader
from assignment_workers.schema.prisma import ITS_POOLS

PLAIN = "postgresql://ann:secret@db.example:5433/dialer"


@pytest.mark.parametrize(
    "names", [*itertools.combinations(sorted(ITS_POOLS), 2), tuple(sorted(ITS_POOLS))]
)
def test_what_sizes_prismas_own_pool_is_left_out(names: tuple[str, ...]) -> None:
    words = "&".join(f"{name}=1" for name in names)
    assert driver_url(f"{PLAIN}?{words}&schema=public&application_name=x") == driver_url(
        f"{PLAIN}?application_name=x"
    )


@pytest.mark.parametrize(
    ("given", "becomes"),
    [
        ("sslaccept=strict", "sslmode=verify-full"),
        ("sslaccept=accept_invalid_certs", "sslmode=require"),
        ("sslaccept=strict&sslmode=require", "sslmode=require"),
        ("connect_timeout=3", "connect_timeout=3"),
    ],
)
def test_what_libpq_has_another_word_for_is_said_in_that(given: str, becomes: str) -> None:
    assert driver_url(f"{PLAIN}?{given}") == driver_url(f"{PLAIN}?{becomes}")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("sslidentity=me.p12", "by sslcert and sslkey"),
        ("sslaccept=perhaps", "one of strict, accept_invalid_certs"),
    ],
)
def test_what_cannot_be_is_named_with_its_remedy_and_without_the_address(
    given: str, said: str
) -> None:
    with pytest.raises(UsageError, match=said) as refused:
        driver_url(f"{PLAIN}?{given}")
    assert "secret" not in str(refused.value)
    assert "db.example" not in str(refused.value)


@pytest.mark.parametrize("name", ["Dialer", "my-dialer", "1st", "a.b", "x" * 64, 'a"; DROP'])
def test_a_schema_whose_name_needs_quotes_is_named(name: str) -> None:
    url = make_url(PLAIN).update_query_dict({"schema": name})
    with pytest.raises(UsageError, match="small letters") as refused:
        locate_dialer(create_engine("sqlite://"), url.render_as_string(hide_password=False))
    assert "secret" not in str(refused.value)


def test_a_schema_in_the_address_of_the_crm_is_named_with_its_remedy() -> None:
    with pytest.raises(UsageError, match="the dialer's file names the CRM's tables"):
        reader(f"{PLAIN}?schema=crm", 5.0, pool=None)


def test_the_schema_takes_the_place_of_public_as_a_name_and_nowhere_else() -> None:
    sql = "SELECT 'public'::regclass, \"public\".a, published FROM public.b GRANT TO PUBLIC"
    assert in_schema(sql, "public") is sql
    assert in_schema(sql, "d") == (
        "SELECT 'd'::regclass, \"d\".a, published FROM d.b GRANT TO PUBLIC"
    )
