#!/bin/sh
# Run nginx in the foreground, in front of the SuperLink, with deploy/nginx.conf. On the server, by the user of the
# SuperLink; root is not needed for ports from 1024:
#
#     deploy/start-proxy.sh /etc/fedgen/server.env
set -eu
umask 077
template="$(dirname "$(realpath "$0")")/nginx.conf"
. "$(realpath "$1")"

mkdir -p "$STATE/proxy"
cd "$STATE/proxy"
sed -e "s|\${CERTIFICATES}|$CERTIFICATES|g" -e "s|\${STATE}|$STATE|g" -e "s|\${SERVER_NAME}|$SERVER_NAME|g" \
    -e "s|\${NODES_LISTEN}|$NODES_LISTEN|g" -e "s|\${OPERATOR_LISTEN}|$OPERATOR_LISTEN|g" \
    -e "s|\${OPERATOR_ALLOW}|$OPERATOR_ALLOW|g" -e "s|\${SUPERLINK_PORT}|$SUPERLINK_PORT|g" \
    "$template" >nginx.conf

PATH="$PATH:/usr/sbin"
exec nginx -p "$STATE/proxy" -c "$STATE/proxy/nginx.conf" -e stderr -g "daemon off;"
