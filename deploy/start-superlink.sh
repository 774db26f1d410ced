#!/bin/sh
# Run Flower's SuperLink in the foreground: TLS, nodes by their registered keys only, state in a database. On the server:
#
#     deploy/start-superlink.sh /etc/fedgen/server.env
#
# It listens on 127.0.0.1 alone, since whoever reaches its port can submit code: the proxy tells nodes and operator apart.
set -eu
umask 077
. "$(realpath "$1")"

mkdir -p "$STATE/work"
cd "$STATE/work" # Flower would take the ClientApp from a checkout that it is started in
export PATH="$BIN:$PATH" FLWR_HOME="$STATE/flower" FEDGEN_HOME
export FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1 PYTHONUNBUFFERED=1

exec flower-superlink \
    --host 127.0.0.1 --port "$SUPERLINK_PORT" \
    --ssl-ca-certfile "$CERTIFICATES/ca.crt" \
    --ssl-certfile "$CERTIFICATES/server.crt" --ssl-keyfile "$CERTIFICATES/server.key" \
    --enable-supernode-auth \
    --database "$STATE/superlink.db" \
    --disable-runtime-dependency-installation
