"""The one place where an exception becomes an errno.

pyfuse3 ends the whole session on anything but FUSEError, so every handler goes
through here. What is not an OSError is a fault of ours or of the disk: it is
logged with its evidence, and the program gets EIO.
"""

from __future__ import annotations

import errno
import functools
import logging
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeAlias, TypeVar

from pyfuse3 import FUSEError

from agentfs.fuse.loop import letting_others_in
from agentfs.index import disk_error

log = logging.getLogger(__name__)

Result = TypeVar("Result")
Arguments = ParamSpec("Arguments")
Handler: TypeAlias = Callable[Arguments, Coroutine[Any, Any, Result]]


def translate(error: Exception, request: str) -> FUSEError:
    """The FUSEError for whatever a handler raised."""
    if isinstance(error, FUSEError):
        return error
    if isinstance(error, OSError) and error.errno is not None:
        return FUSEError(error.errno)
    if isinstance(error, FileExistsError):
        return FUSEError(errno.EEXIST)
    failed = disk_error(error)
    if failed is not None and failed.errno is not None:
        log.error("%s failed: %s", request, failed)
        return FUSEError(failed.errno)
    log.error("%s failed", request, exc_info=error)
    return FUSEError(errno.EIO)


def answers(method: Callable[Arguments, Result]) -> Handler[Arguments, Result]:
    """Make a request handler of a method that never waits."""

    @functools.wraps(method)
    async def handler(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        try:
            return method(*args, **kwargs)
        except Exception as error:
            raise translate(error, method.__name__) from None

    return handler


def answers_mostly_at_once(method: Handler[Arguments, Result]) -> Handler[Arguments, Result]:
    """Make a request handler of a coroutine method that itself lets others in where it waits."""

    @functools.wraps(method)
    async def handler(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        try:
            return await method(*args, **kwargs)
        except Exception as error:
            raise translate(error, method.__name__) from None

    return handler


def answers_later(method: Handler[Arguments, Result]) -> Handler[Arguments, Result]:
    """Make a request handler of a coroutine method."""

    @functools.wraps(method)
    async def handler(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        try:
            return await letting_others_in(method(*args, **kwargs))
        except Exception as error:
            raise translate(error, method.__name__) from None

    return handler
