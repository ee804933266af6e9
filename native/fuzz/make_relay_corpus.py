"""Writes the seeds of fuzz_relay_request and fuzz_relay_reply: one message of each kind."""

import struct
from pathlib import Path

CORPUS = Path(__file__).parent / "corpus"

REQUESTS = {
    "lookup": (1, b"name\0"),
    "getattr": (3, bytes(16)),
    "setattr": (4, bytes(88)),
    "link": (13, struct.pack("<Q", 2) + b"name\0"),
    "open": (14, bytes(8)),
    "release": (18, struct.pack("<QIIQ", 1 << 62 | 5, 0, 0, 0)),
    "getxattr": (22, bytes(8) + b"security.capability\0"),
    "init": (26, struct.pack("<IIIIII", 7, 45, 131072, 0xFFFFFFFF, 0xFFFFFFFF, 0) + bytes(40)),
    "interrupt": (36, struct.pack("<Q", 4)),
    "copy": (47, struct.pack("<QQQQQQQ", 1, 0, 2, 1 << 62 | 3, 0, 9, 0)),
}

ENTRY = struct.pack("<QQQQII", 1, 0, 60, 60, 0, 0) + struct.pack("<Q", 1) + bytes(80)
DIRENT = struct.pack("<QQII", 1, 1, 4, 8) + b"name"
REPLIES = {
    "lookup": (1, ENTRY),
    "getattr": (3, struct.pack("<QII", 60, 0, 0) + bytes(88)),
    "setattr": (4, struct.pack("<QII", 60, 0, 0) + bytes(88)),
    "open": (14, struct.pack("<QII", 5, 2, 0)),
    "create": (35, ENTRY + struct.pack("<QII", 5, 2, 0)),
    "init": (
        26,
        struct.pack("<IIIIHHIIHH", 7, 38, 131072, 0, 12, 9, 1 << 20, 1, 256, 0) + bytes(32),
    ),
    "readdir": (28, (DIRENT + bytes(4)) * 2),
    "readdirplus": (44, (ENTRY + DIRENT + bytes(4)) * 2),
}


def main() -> None:
    """Overwrites the committed seeds."""
    for name, (opcode, body) in REQUESTS.items():
        header = struct.pack("<IIQQIIIHH", 40 + len(body), opcode, 2, 1, 0, 0, 0, 0, 0)
        write("relay_request", name, header + body)
    for name, (opcode, body) in REPLIES.items():
        header = struct.pack("<IiQ", 16 + len(body), 0, 2)
        write("relay_reply", name, bytes([opcode]) + header + body)


def write(folder: str, name: str, content: bytes) -> None:
    """One seed."""
    (CORPUS / folder).mkdir(parents=True, exist_ok=True)
    (CORPUS / folder / name).write_bytes(content)


if __name__ == "__main__":
    main()
