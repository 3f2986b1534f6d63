"""This machine's Docker."""

import shutil
import subprocess


def compose_command() -> list[str] | None:
    """Return the command of Compose; None if no Docker daemon answers, or Compose is not installed."""
    if not _works("docker", "info"):
        return None
    candidates = (["docker", "compose"], ["docker-compose"])
    return next((command for command in candidates if _works(*command, "version")), None)


def _works(*command: str) -> bool:
    return (
        shutil.which(command[0]) is not None and subprocess.run(command, capture_output=True).returncode == 0
    )


def docker(*arguments: str) -> str:
    """Return the output of `docker`."""
    result = subprocess.run(["docker", *arguments], check=True, text=True, capture_output=True)  # noqa: S607
    return result.stdout.strip()
