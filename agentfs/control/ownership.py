"""Whose a store is: one user's, closed to all others, and nothing in it leads out of it.

Who could write in the directory could have put names there that a daemon, perhaps root's, would
follow when it opens its log or its index. So they are looked at when nobody else can add any
more. Directories above the store are not: who may write in those may put another store there.
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

from agentfs.errors import StoreUnusable


def check_own(store: Path) -> None:
    """See to it that a directory and all names in it are ours. Changes nothing.

    :raises StoreUnusable: they are not
    """
    if os.stat(store).st_uid != os.geteuid():
        raise StoreUnusable(
            f"the store {store} belongs to another user; run agentfs as that user, "
            "or have it given to you with: chown -R"
        )
    with os.scandir(store) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):  # a daemon may be using the store
                _check_entry(entry)


def _check_entry(entry: os.DirEntry[str]) -> None:
    status = entry.stat(follow_symlinks=False)
    is_link = stat.S_ISLNK(status.st_mode)
    if is_link or (stat.S_ISREG(status.st_mode) and status.st_nlink > 1):
        raise StoreUnusable(f"{entry.path} leads out of the store; put the file itself there")
    if status.st_uid != os.geteuid():
        raise StoreUnusable(
            f"{entry.path} belongs to another user; if the store is yours: chown -R"
        )


def close_to_others(store: Path) -> None:
    """Let nobody else into a directory, and then see to it that what is in it is ours.

    :raises StoreUnusable: it is not
    """
    if os.stat(store).st_uid == os.geteuid():
        os.chmod(store, 0o700)
    check_own(store)
