#!/bin/sh
# Remove what runs have sent from the SuperLink's database: weights and synthetic samples stay in its file otherwise.
# On the server, with the SuperLink stopped:
#
#     deploy/clean-database.sh /etc/fedgen/server.env
#
# Registered nodes, the list of runs and their logs are kept. An unfinished run cannot go on from the database anyway.
set -eu
umask 077
. "$(realpath "$1")"

exec "$BIN/python" - "$STATE/superlink.db" <<'END'
import os
import sqlite3
import sys

path = sys.argv[1]
if not os.path.isfile(path):
    sys.exit(f"error: there is no database {path}")
files = (path, f"{path}-wal")
before = sum(os.path.getsize(file) for file in files if os.path.exists(file))
database = sqlite3.connect(path, isolation_level=None, timeout=1)
try:
    database.execute("PRAGMA locking_mode = EXCLUSIVE")  # as the one process that has it open
    database.execute("PRAGMA secure_delete = ON")
    database.execute("BEGIN EXCLUSIVE")
except sqlite3.OperationalError as error:
    sys.exit(f"error: {path} is in use ({error}): stop the SuperLink first")
for table in ("object_children", "run_objects", "objects", "message_res", "message_ins", "series_context"):
    database.execute(f"DELETE FROM {table}")
database.execute("COMMIT")
database.execute("VACUUM")
database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
nodes = database.execute("SELECT count(*) FROM node WHERE unregistered_at IS NULL OR unregistered_at = ''").fetchone()[0]
database.close()
print(f"{path}: {before / 1e6:.1f} MB before, {os.path.getsize(path) / 1e6:.1f} MB now; {nodes} registered nodes kept")
END
