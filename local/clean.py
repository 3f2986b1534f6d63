"""`make clean`: remove the data folder, unless something runs over it."""

import sys

from local.data_folder import FolderInUseError, NotOurFolderError, remove
from local.settings import LocalSettings


def main() -> int:
    """Remove the folder and say so; 1 when it is in use or not ours."""
    folder = LocalSettings().folder
    try:
        removed = remove(folder)
    except (FolderInUseError, NotOurFolderError, PermissionError) as error:
        print(f"not removed: {error}", file=sys.stderr)
        return 1
    print(f"removed {folder}" if removed else f"nothing to remove: there is no {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
