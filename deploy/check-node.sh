#!/bin/sh
# Say what is sound on a node, and what is wrong: store, configuration, key, certificate, versions. On the node:
#
#     deploy/check-node.sh /etc/fedgen/node0.env
#
# More arguments go to `fedgen node check`: overrides of the run that the node is to join, such as encoder=patches.
# With "--superlink $SUPERLINK" it also asks the server. Exits with 1 if anything is wrong.
set -eu
. "$(realpath "$1")"
shift

export FEDGEN_HOME
exec "$BIN/fedgen" node check --node-config "$NODE_CONFIG" --root-certificates "$CA" --key "$KEY" "$@"
