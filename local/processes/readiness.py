"""Readiness checks: one function per kind of program."""

import smtplib
from contextlib import closing
from http.client import HTTPConnection
from urllib.parse import urlsplit

from celery import Celery
from celery.utils.nodenames import gethostname

from local.ports import LOOPBACK
from reliable_celery.sentinel import Sentinel


def workers_answer(broker_url: str, *names: str, sentinel: Sentinel | None = None) -> bool:
    """Tell whether the workers `<name>@<this host>` all answer a ping over the broker."""
    wanted = {f"{name}@{gethostname()}" for name in names}
    with Celery(broker=broker_url, set_as_current=False) as app:
        app.conf.broker_transport_options = (sentinel or Sentinel()).options(broker_url)
        replies = app.control.ping(destination=sorted(wanted), timeout=1.0)
    return wanted <= {node for reply in replies for node in reply}


def flower_answers(port: int) -> bool:
    """Tell whether Flower's health check passes."""
    # Unlike urllib, this asks no proxy, which could not reach our loopback.
    with closing(HTTPConnection(LOOPBACK, port, timeout=2)) as connection:
        connection.request("GET", "/healthcheck")
        return connection.getresponse().status == 200


def mail_answers(url: str) -> bool:
    """Tell whether the SMTP server at `url` greets."""
    parts = urlsplit(url)
    secure = parts.scheme == "smtps"
    kind = smtplib.SMTP_SSL if secure else smtplib.SMTP
    with kind(parts.hostname or LOOPBACK, parts.port or (465 if secure else 25), timeout=5) as client:
        return client.noop()[0] == 250
