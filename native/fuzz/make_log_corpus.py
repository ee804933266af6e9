"""Writes the seeds of fuzz_log: the log of a small index, to be taken as it is and mended."""

import tempfile
from pathlib import Path

from agentfs.index import _pages
from agentfs.index.connection import connect

CORPUS = Path(__file__).parent / "corpus" / "log"

with tempfile.TemporaryDirectory() as directory:
    path = Path(directory) / "index.db"
    database = connect(path, "rwc")
    database.execute(f"PRAGMA page_size = {_pages.PAGE_BYTES}")
    database.execute("PRAGMA journal_mode = wal")
    database.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, name)")
    for number in range(50):
        database.execute("INSERT INTO t (name) VALUES (?)", (b"name %d" % number,))
    log = Path(directory) / "index.db-wal"
    content = log.read_bytes()
    database.close()
CORPUS.mkdir(parents=True, exist_ok=True)
for first in (b"\0", b"\1"):
    (CORPUS / f"log-{first[0]}").write_bytes(first + content)
