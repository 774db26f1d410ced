#!/bin/sh
# Check a node: its configuration, store and device. On the node:
#
#     deploy/check-node.sh /etc/fedgen/node0.env
#
# More arguments go to `fedgen node check`: overrides of the run that the node is to join, such as encoder=patches.
# Exits with 1 if anything is wrong. Flower itself checks keys and certificates when the SuperNode starts.
set -eu
. "$(realpath "$1")"
shift

export FEDGEN_HOME
exec "$BIN/fedgen" node check --node-config "$NODE_CONFIG" "$@"
