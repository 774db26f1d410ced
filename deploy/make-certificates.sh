#!/bin/sh
# Make a certificate authority and, signed by it, the server's certificate. On the server:
#
#     deploy/make-certificates.sh /etc/fedgen/server.env
#
# Called again it keeps the authority and makes a new certificate: so a certificate is renewed, or given another
# SERVER_NAME. Nodes and operators need ca.crt, which is public. ca.key signs certificates that they trust: keep it off
# the server once this is done. Both last as long as CA_DAYS and SERVER_DAYS say.
set -eu
umask 077
. "$(realpath "$1")"

mkdir -p "$CERTIFICATES"
cd "$CERTIFICATES"

if [ ! -e ca.crt ]; then
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-384 -nodes -days "${CA_DAYS:-3650}" \
        -subj "/CN=fedgen authority" -keyout ca.key -out ca.crt \
        -addext "basicConstraints=critical,CA:TRUE,pathlen:0" -addext "keyUsage=critical,keyCertSign,cRLSign"
fi

case "$SERVER_NAME" in
    *[!0-9.]*) name="DNS:$SERVER_NAME" ;;
    *) name="IP:$SERVER_NAME" ;;
esac
cat >server.ext <<END
basicConstraints=critical,CA:FALSE
keyUsage=critical,digitalSignature
extendedKeyUsage=serverAuth
subjectAltName=$name,DNS:localhost,IP:127.0.0.1
subjectKeyIdentifier=hash
authorityKeyIdentifier=keyid
END
openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-384 -nodes -subj "/CN=$SERVER_NAME" \
    -keyout server.key.new -out server.csr
openssl x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days "${SERVER_DAYS:-825}" \
    -extfile server.ext -out server.crt.new
mv server.key.new server.key
mv server.crt.new server.crt
rm server.csr server.ext
chmod 644 ca.crt server.crt
openssl verify -CAfile ca.crt -purpose sslserver server.crt
