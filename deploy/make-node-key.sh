#!/bin/sh
# Make a node's key, by which the SuperLink knows it. On the node:
#
#     deploy/make-node-key.sh /etc/fedgen/node0.env
#
# The public half, whose path is printed, goes to the operator, who registers it. A key that is there is kept.
set -eu
umask 077
. "$(realpath "$1")"

mkdir -p "$(dirname "$KEY")"
[ -e "$KEY" ] || ssh-keygen -q -t ecdsa -b 384 -N "" -C "" -f "$KEY"
echo "$KEY.pub"
