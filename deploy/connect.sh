#!/bin/sh
# Tell Flower's commands how to reach the SuperLink: a connection in $FLWR_HOME/config.toml (~/.flwr). For the operator:
#
#     deploy/connect.sh /etc/fedgen/operator.env
#
# A connection of this name that is there is left alone.
set -eu
. "$(realpath "$1")"

file="${FLWR_HOME:-$HOME/.flwr}/config.toml"
mkdir -p "$(dirname "$file")"
touch "$file"
if grep -q "^\[superlink\.$CONNECTION\]" "$file"; then
    echo "$file has a connection $CONNECTION: nothing to do"
    exit
fi
cat >>"$file" <<END

[superlink.$CONNECTION]
address = "$OPERATOR_ADDRESS"
root-certificates = "$CA"
END
echo "connection $CONNECTION to $OPERATOR_ADDRESS in $file"
