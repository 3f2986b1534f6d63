"""The account that servers run as, never root: PostgreSQL refuses it, and this Redis has no password."""

import fcntl
import os
import pwd
import stat
import subprocess
from contextlib import suppress
from pathlib import Path

#: In a folder that only root writes to and that every Linux and macOS has.
_LOCK_FILE = Path("/var/run/allocation-accounts.lock")

_NAME = "pgserver"  # the account that the PostgreSQL wheel creates when root starts it


def account_for(folder: Path) -> pwd.struct_passwd | None:
    """Return the account that runs a server over `folder`: None (the current one) unless this is root.

    Root runs it as the folder's owner, so that data made by a normal user stays that user's.
    """
    if os.geteuid() != 0:
        return None
    if folder.exists() and (owner := folder.stat().st_uid) != 0:
        with suppress(KeyError):
            return pwd.getpwuid(owner)
    return _unprivileged()


def give(folder: Path, account: pwd.struct_passwd | None) -> None:
    """Create `folder` for the account alone, and let the account reach it."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if account is None:
        return
    os.chown(folder, account.pw_uid, account.pw_gid)
    let_pass(folder)


def let_pass(path: Path) -> None:
    """Let every account pass through the parents of `path`, without listing them."""
    for parent in path.resolve().parents:
        mode = parent.stat().st_mode
        if not mode & stat.S_IXOTH:
            parent.chmod(stat.S_IMODE(mode) | stat.S_IXOTH)


def _unprivileged() -> pwd.struct_passwd:
    """Return the servers' account, created if it is missing, else `nobody`."""
    # Without the lock, of two that create it at once one may see it before the other fails and removes it.
    with _LOCK_FILE.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            return pwd.getpwnam(_NAME)
        except KeyError:
            command = ["useradd", "--system", "--no-create-home", "--shell", "/usr/sbin/nologin", _NAME]
            with suppress(OSError):
                subprocess.run(command, check=False, capture_output=True)
    try:
        return pwd.getpwnam(_NAME)
    except KeyError:
        return pwd.getpwnam("nobody")
