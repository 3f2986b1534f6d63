"""TLS to brokers and results, for addresses that ask for it; server certificates are verified."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any


def settings(broker_url: str, backend_url: str, ca_file: Path | None) -> dict[str, Any]:
    """Return Celery's settings for `rediss://` and `amqps://`; kombu's defaults verify no certificate.

    `ca_file` holds the trusted certificate authorities; default: the system's.
    """
    found: dict[str, Any] = {}
    authorities = str(ca_file) if ca_file else ssl.get_default_verify_paths().cafile
    if broker_url.startswith("amqps:"):
        found["broker_use_ssl"] = {
            "ca_certs": authorities,
            "cert_reqs": ssl.CERT_REQUIRED,
            "server_hostname": None,  # the host in the address; verified because it is set
        }
    if broker_url.startswith("rediss:"):
        found["broker_use_ssl"] = _redis(authorities)
    if backend_url.startswith("rediss:"):
        found["redis_backend_use_ssl"] = _redis(authorities)
    return found


def _redis(authorities: str | None) -> dict[str, Any]:
    return {"ssl_cert_reqs": ssl.CERT_REQUIRED, "ssl_ca_certs": authorities, "ssl_check_hostname": True}
