"""Writes the seeds of fuzz_columns: pages of a small database, as they are."""

import sqlite3
from pathlib import Path

CORPUS = Path(__file__).parent / "corpus" / "columns"
GROUP_BYTES = 16 * 1024

database = sqlite3.connect(":memory:")
database.execute("PRAGMA page_size = 1024")
database.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, digest, number, recipe)")
database.execute("CREATE TABLE n (parent, name, inode, PRIMARY KEY (parent, name)) WITHOUT ROWID")
for number in range(60):
    row = (number * 2, bytes(range(number, number + 16)), number**5, bytes(number % 5 * 8))
    database.execute("INSERT INTO t VALUES (?, ?, ?, ?)", row)
    database.execute("INSERT INTO n VALUES (?, ?, ?)", (number % 3, b"name %d" % number, number))
database.commit()
CORPUS.mkdir(parents=True, exist_ok=True)
(CORPUS / "pages").write_bytes(database.serialize()[:GROUP_BYTES])
(CORPUS / "leaf").write_bytes(database.serialize()[1024:2048])
