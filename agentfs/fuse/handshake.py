"""How we ask the kernel, in plain mode, for what pyfuse3 does not know to ask for.

Where a directory has a default list, that takes the place of the umask, so we must be told modes as
programs gave them. The kernel does that for who answers INIT with FUSE_DONT_MASK. Therefore
pyfuse3 has one end of a socket in place of /dev/fuse until it has answered INIT: the request is put
in at the other end, the answer taken out there and amended. In relay mode the relay does it.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import struct

_DONT_MASK = 1 << 6
_NUMBER = struct.Struct("=I")
_REQUEST_FLAGS_AT = 52
"""In struct fuse_in_header and, after it, fuse_init_in."""
_REPLY_ERROR_AT = 4
_REPLY_FLAGS_AT = 28
"""In struct fuse_out_header and, after it, fuse_init_out."""

_REQUEST_BYTES = 8192
"""The kernel gives nothing to who has less room."""
_REPLY_BYTES = 4096

_FUSE_DEVICE = os.makedev(10, 229)


def devices() -> set[int]:
    """Descriptors of /dev/fuse that this process has."""
    found = set()
    for number in map(int, os.listdir("/proc/self/fd")):
        with contextlib.suppress(OSError):  # that of the listing itself
            status = os.fstat(number)
            if stat.S_ISCHR(status.st_mode) and status.st_rdev == _FUSE_DEVICE:
                found.add(number)
    return found


class Handshake:
    """The exchange of INIT between the kernel and pyfuse3."""

    def __init__(self, number: int) -> None:
        """
        :param number: pyfuse3's descriptor of /dev/fuse, through which INIT is to be read
        :raises OSError: the mount is gone already; nothing has changed
        """
        request = os.read(number, _REQUEST_BYTES)
        (offered,) = _NUMBER.unpack_from(request, _REQUEST_FLAGS_AT)
        self._flags = offered & _DONT_MASK
        self._number = number
        self._device = os.dup(number)
        self._socket, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with other:
            os.dup2(other.fileno(), number, inheritable=False)
        self._socket.send(request)

    def carry_on(self) -> bool:
        """Give the kernel pyfuse3's answer; False: there is none yet."""
        try:
            reply = bytearray(self._socket.recv(_REPLY_BYTES, socket.MSG_DONTWAIT))
        except BlockingIOError:
            return False
        if not any(reply[_REPLY_ERROR_AT : _REPLY_ERROR_AT + _NUMBER.size]):
            (flags,) = _NUMBER.unpack_from(reply, _REPLY_FLAGS_AT)
            _NUMBER.pack_into(reply, _REPLY_FLAGS_AT, flags | self._flags)
        with contextlib.suppress(OSError):  # the mount is gone, which pyfuse3 is to read itself
            os.write(self._device, reply)
        self.end()
        return True

    def end(self) -> None:
        """Give pyfuse3 /dev/fuse back. Idempotent."""
        if self._device >= 0:
            os.dup2(self._device, self._number, inheritable=False)
            os.close(self._device)
            self._device = -1
            self._socket.close()
