"""Addresses of PostgreSQL that name several servers, of which one accepts writes."""

from __future__ import annotations

import re

from sqlalchemy import URL, make_url

#: Without it libpq stays with the first server that answers, also if that is a standby.
WRITES = {"target_session_attrs": "read-write"}
HOST = re.compile(r"\[(?P<six>.*)\](:(?P<six_port>\d*))?|(?P<name>[^:]*)(:(?P<port>\d*))?")


def parse(url: str) -> URL:
    """Return an address for SQLAlchemy; several hosts are separated by commas, as libpq and psql write them.

    `postgresql+psycopg2://user@one:5432,two:5432/database` becomes a connection to the server that accepts
    writes, unless `target_session_attrs` says otherwise.

    Raises:
        ValueError: it is no address.
    """
    scheme, separator, rest = url.partition("://")
    authority, slash, path = rest.partition("/")
    login, at, hosts = authority.rpartition("@")
    if "," not in hosts:
        return _writing(make_url(url))
    named = [_host_and_port(one) for one in hosts.split(",")]
    names, ports = (",".join(part) for part in zip(*named, strict=True))
    bare = make_url(f"{scheme}{separator}{login}{at}{slash}{path}")
    return _writing(bare.update_query_dict({"host": names, "port": ports}))


def _host_and_port(text: str) -> tuple[str, str]:
    found = HOST.fullmatch(text)
    if found is None:
        raise ValueError("in an address with several hosts, each is a name with an optional port: name:5432")
    return found["six"] or found["name"] or "", found["six_port"] or found["port"] or "5432"


def names_several(url: URL) -> bool:
    """Return whether an address names several servers."""
    hosts = url.query.get("host", ())
    return "," in hosts or not (isinstance(hosts, str) or len(hosts) < 2)


def _writing(url: URL) -> URL:
    missing = names_several(url) and "target_session_attrs" not in url.query
    return url.update_query_dict(WRITES) if missing else url
