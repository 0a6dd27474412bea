#!/bin/sh
# Makes what compose.secure.yaml and the Kubernetes chart take as secrets: an authority, the broker's certificate, and
# tokens. Needs openssl 3 and `tensorbus` (TENSORBUS says how to call it).
#   sh deploy/make-secrets.sh [FOLDER [JOB [NAME...]]]     NAMEs: more names or addresses of the broker
# Defaults: deploy/secrets, demo. Give the folder to nobody: ca.key signs certificates, root.token does everything.
set -eu
folder=${1:-$(dirname "$0")/secrets}
job=${2:-demo}
[ $# -le 2 ] && set -- || shift 2
tensorbus=${TENSORBUS:-tensorbus}

command -v openssl >/dev/null || { echo "openssl is not installed" >&2; exit 1; }
command -v "${tensorbus%% *}" >/dev/null || { echo "$tensorbus is not installed; say TENSORBUS=..." >&2; exit 1; }
[ ! -e "$folder/tokens.json" ] || { echo "$folder holds secrets already" >&2; exit 1; }
umask 077
mkdir -p "$folder"
cd "$folder"

names=DNS:broker,DNS:localhost,IP:127.0.0.1
for name in "$@"; do
    case $name in
        *:*) names=$names,IP:$name ;;
        *[!0-9.]*) names=$names,DNS:$name ;;
        *) names=$names,IP:$name ;;
    esac
done

key="-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes"
openssl req -x509 $key -days 3650 -subj "/CN=Tensorbus of $job" -keyout ca.key -out ca.pem \
    -addext basicConstraints=critical,CA:TRUE,pathlen:0 -addext keyUsage=critical,keyCertSign,cRLSign 2>/dev/null
cat >server.ext <<END
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth
subjectAltName = $names
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
END
openssl req -new $key -subj "/CN=broker" -keyout server.key -out server.csr 2>/dev/null
openssl x509 -req -in server.csr -CA ca.pem -CAkey ca.key -days 825 -extfile server.ext -out server.pem 2>/dev/null
rm server.csr server.ext

token() { # NAME RIGHTS...
    name=$1; shift
    $tensorbus token create "$name" "$@" --data . --json | sed 's/.*"token": *"\([^"]*\)".*/\1/' >"$name.token"
    grep -q '^tb_' "$name.token"
}
token root --admin '>'
token aggregator --admin "fl.$job.>"
token site-a --publish "fl.$job.updates" --publish "fl.$job.seed" --subscribe "fl.$job.model"
token site-b --publish "fl.$job.updates" --subscribe "fl.$job.model"
token prometheus --subscribe metrics    # any token may read /metrics, and no message has this topic
openssl rand -hex 24 >grafana.password

# For compose.cluster.yaml: the proxy takes certificate and key as one file, the NATS servers have one user.
cat server.pem server.key >proxy.pem
openssl rand -hex 24 >nats.password
printf 'user: tensorbus, password: "%s"\n' "$(cat nats.password)" >nats.auth

# The users of the containers read the files, the folder keeps everybody else on this machine from them.
rm -f tokens.lock
chmod 0444 *.pem *.token server.key tokens.json *.password nats.auth
echo "secrets of the job $job are in $folder, for $names"
