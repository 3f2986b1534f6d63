"""A whole running backend on one machine: what `make up`, the demo and the end-to-end tests share."""

from collections.abc import Callable, Collection
from smtplib import SMTPException
from types import TracebackType
from typing import IO, Self

from local.addresses import Addresses, masked
from local.data_folder import hold
from local.flower_login import FlowerLogin, login_of
from local.ports import LOOPBACK, is_free
from local.processes import programs, readiness
from local.processes.child import Child
from local.processes.programs import migrate
from local.processes.supervisor import Supervisor
from local.servers.mail_server import MailSink
from local.servers.postgres_server import Postgres, hide_client_settings
from local.servers.redis_server import Redis
from local.service import ALLOCATION, Service
from local.settings import LocalSettings
from local.waiting import eventually

READY_TIMEOUT = 120.0  # seconds; five Python programs start at once, on two busy cores


class PortTakenError(RuntimeError):
    """A port is taken; the text names the variable that changes it."""

    def __init__(self, variable: str, port: int) -> None:
        super().__init__(variable, port)
        self.variable, self.port = variable, port

    def __str__(self) -> str:
        """Say it in one line."""
        return f"port {self.port} is already in use: set {self.variable} to another one"


class Stack:
    """Servers whose address is not set, migration, workers, beat and Flower; a context manager.

    `commands`, `housekeeping`, `beat`, `flower` are children; `postgres`, `redis`, `mail` are servers, None
    where an address is set. `supervisor` pauses and resumes each by that name.
    """

    def __init__(
        self,
        settings: LocalSettings | None = None,
        report: Callable[[str], object] = print,
        without: Collection[str] = (),
        service: Service = ALLOCATION,
    ) -> None:
        """Plan the stack; nothing starts yet. `without` names parts that stay down until `resume`.

        If it is to serve PostgreSQL, this process and its children lose their PG variables.
        """
        self.service = service
        self.settings = settings or LocalSettings()
        self._report = report
        self.supervisor = Supervisor(report)
        self.addresses = addresses_of(self.settings)
        self.without = frozenset(without)
        #: Set by `start`: a generated password is in the data folder, which has to be locked first.
        self.flower_login: FlowerLogin | None = None
        self._held: IO[str] | None = None
        self._plan_servers()
        self._plan_children()

    def start(self) -> Self:
        """Start everything and return when all of it answers; on failure, stop whatever was started.

        Raises `PortTakenError`, `FolderInUseError`, `ChildFailedError` or `NotInTimeError`.
        """
        try:
            self._held = hold(self.settings.folder)
            self._set_login()
            self._check_ports()
            self._start_servers()
            migrate(self.addresses.database_url, self.service)
            self._start_children()
            self._wait_ready()
            self.supervisor.watch()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Stop everything, workers before their servers, and keep the data."""
        try:
            self.supervisor.stop_together(child.name for child in self._all_children())
        finally:
            self.supervisor.stop()
            if self._held is not None:
                self._held.close()

    def __enter__(self) -> Self:
        """Start."""
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop."""
        self.stop()

    def _plan_servers(self) -> None:
        given, folder = self.settings, self.settings.folder
        self.postgres = None if given.database_url else Postgres(folder / "postgres", given.postgres_port)
        if self.postgres is not None:
            hide_client_settings()
        self.redis = Redis(folder / "redis", given.redis_port) if given.needs_redis else None
        self.mail = None if given.smtp_url else MailSink(folder / "mail", given.smtp_port)
        self.servers = {"postgres": self.postgres, "redis": self.redis, "mail": self.mail}

    def _plan_children(self) -> None:
        logs, env, service = self.settings.folder, self.addresses.environment(self.service), self.service
        workers = self.settings.worker_concurrency
        self.commands = programs.commands_worker(logs, env, workers, service=service)
        metrics = self.settings.metrics_addresses
        own = {service.variable("metrics_address"): metrics[1]} if metrics else {}
        self.housekeeping = programs.housekeeping_worker(logs, {**env, **own}, service)
        self.beat = programs.beat(logs, env, service)
        self.flower = programs.flower(logs, env, self.settings.flower_port, service)

    def _set_login(self) -> None:
        self.flower_login = login_of(self.settings)
        self.flower.env = {**(self.flower.env or {}), **self.flower_login.environment}

    @property
    def children(self) -> list[Child]:
        """Return the programs to run, in start order."""
        return [child for child in self._all_children() if child.name not in self.without]

    def _all_children(self) -> tuple[Child, ...]:
        return self.commands, self.housekeeping, self.beat, self.flower

    def _check_ports(self) -> None:
        """Check all ports before anything starts."""
        for variable, port in self.settings.own_ports().items():
            if not is_free(port):
                raise PortTakenError(variable, port)

    def _start_servers(self) -> None:
        for name, server in self.servers.items():
            if server is not None and name in self.without:
                self.supervisor.plan(name, server)
            elif server is not None:
                self.supervisor.start(name, server)

    def _start_children(self) -> None:
        for child in self._all_children():
            if child.name in self.without:
                self.supervisor.plan(child.name, child)
            else:
                self.supervisor.start(child.name, child)

    def _wait_ready(self) -> None:
        names = {child.name for child in self.children}
        # Not asked by a ping: workers that accept only signed messages would not answer an unsigned one.
        workers = [child for child in self.children if child.name in ("commands", "housekeeping")]
        self._wait_for("the workers", lambda: all(" ready." in worker.log_text() for worker in workers))
        if "beat" in names:
            self._wait_for("beat", lambda: "beat: Starting" in self.beat.log_text())
        if "flower" in names:
            self._wait_for("Flower", lambda: readiness.flower_answers(self.settings.flower_port))
        if self.mail is None:
            self._look_for_mail_server()
        elif "mail" not in self.without:
            self._wait_for("the mail server", lambda: readiness.mail_answers(self.addresses.smtp_url))

    def _look_for_mail_server(self) -> None:
        """Report a mail server elsewhere that does not answer; the backend works without it."""
        try:
            readiness.mail_answers(self.addresses.smtp_url)
        except (OSError, SMTPException) as error:
            where = masked(self.addresses.smtp_url)
            self._report(
                f"the mail server {where} does not answer ({error}): starting without it, mails are retried"
            )

    def _wait_for(self, what: str, answers: Callable[[], bool]) -> None:
        """Wait for one part; a program that ends meanwhile is an error at once, with the end of its log."""
        dead: list[Child] = []

        def answers_or_somebody_died() -> bool:
            dead.extend(child for child in self.children if not child.running)
            return bool(dead) or answers()

        eventually(answers_or_somebody_died, READY_TIMEOUT, f"an answer from {what}")
        if dead:
            raise dead[0].ended_early()


def addresses_of(settings: LocalSettings) -> Addresses:
    """Return the addresses that are set, and those of what is served here."""
    redis = Redis(settings.folder, settings.redis_port)
    return Addresses(
        database_url=settings.database_url or Postgres(settings.folder, settings.postgres_port).url,
        broker_url=settings.broker_url or redis.url_of(0),
        result_backend_url=settings.result_backend_url or redis.url_of(1),
        smtp_url=settings.smtp_url or MailSink(settings.folder, settings.smtp_port).url,
        flower_url=f"http://{LOOPBACK}:{settings.flower_port}",
    )
