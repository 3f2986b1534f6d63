"""The Docker of this machine, whatever it is."""

import shutil
import subprocess


def compose_command() -> list[str] | None:
    """Return how Compose is called here; None where no Docker daemon answers, or there is no Compose."""
    if not _works("docker", "info"):
        return None
    candidates = (["docker", "compose"], ["docker-compose"])
    return next((command for command in candidates if _works(*command, "version")), None)


def _works(*command: str) -> bool:
    return (
        shutil.which(command[0]) is not None and subprocess.run(command, capture_output=True).returncode == 0
    )


def docker(*arguments: str) -> str:
    """Return what `docker` prints."""
    result = subprocess.run(["docker", *arguments], check=True, text=True, capture_output=True)  # noqa: S607
    return result.stdout.strip()
