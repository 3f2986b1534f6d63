"""TLS to brokers and results, for addresses that ask for it; server certificates are verified."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

#: The beginnings of Redis' addresses over TLS.
REDIS = ("rediss:", "sentinels:")


def settings(broker_url: str, backend_url: str, ca_file: Path | None) -> dict[str, Any]:
    """Return Celery's settings for `rediss://`, `sentinels://` and `amqps://`.

    kombu's defaults verify no certificate.

    `ca_file` holds the trusted certificate authorities; default: the system's.
    """
    found: dict[str, Any] = {}
    authorities = _authorities(ca_file)
    if broker_url.startswith("amqps:"):
        found["broker_use_ssl"] = {
            "ca_certs": authorities,
            "cert_reqs": ssl.CERT_REQUIRED,
            "server_hostname": None,  # the host in the address; verified because it is set
        }
    if broker_url.startswith(REDIS):
        found["broker_use_ssl"] = redis(ca_file)
    if backend_url.startswith(REDIS):
        found["redis_backend_use_ssl"] = redis(ca_file)
    return found


def _authorities(ca_file: Path | None) -> str | None:
    return str(ca_file) if ca_file else ssl.get_default_verify_paths().cafile


def redis(ca_file: Path | None) -> dict[str, Any]:
    """Return redis-py's arguments for TLS."""
    authorities = _authorities(ca_file)
    return {"ssl_cert_reqs": ssl.CERT_REQUIRED, "ssl_ca_certs": authorities, "ssl_check_hostname": True}
