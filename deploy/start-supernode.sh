#!/bin/sh
# Run a node's SuperNode in the foreground; it connects to the server, and nothing needs to reach it. On the node:
#
#     deploy/start-supernode.sh /etc/fedgen/node0.env
#
# It ends when the server refuses its key, so something has to start it again: fedgen-supernode@.service does.
set -eu
umask 077
. "$(realpath "$1")"

mkdir -p "$STATE/work"
cd "$STATE/work"
export PATH="$BIN:$PATH" FLWR_HOME="$STATE" FEDGEN_HOME
export FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1 PYTHONUNBUFFERED=1

exec flower-supernode \
    --superlink "$SUPERLINK" \
    --root-certificates "$CA" --auth-supernode-private-key "$KEY" \
    --host 127.0.0.1 --port "$RUNTIME_PORT" \
    --node-config "$NODE_CONFIG"
