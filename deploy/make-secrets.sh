#!/bin/sh
# Makes what compose.secure.yaml and the Kubernetes chart take as secrets: an authority, the broker's certificate, and
# tokens. Needs openssl 3 and `tensorbus` (TENSORBUS says how to call it).
#   sh deploy/make-secrets.sh [FOLDER [JOB [NAME...]]]     NAMEs: more names or addresses of the broker
#   SITE_NAMES="site-a site-b" FIRST_MODEL=site-a          who gets a token, and which of them publishes the first model
# Defaults: deploy/secrets, demo. Give the folder to nobody: ca.key signs certificates, root.token does everything.
# A site's token is for its own answers, fl.JOB.updates.SITE: the aggregator wants --own-topics, as all files here have it.
set -eu
folder=${1:-$(dirname "$0")/secrets}
job=${2:-demo}
[ $# -le 2 ] && set -- || shift 2
tensorbus=${TENSORBUS:-tensorbus}
sites=${SITE_NAMES-site-a site-b}
seeds=${FIRST_MODEL-site-a}

command -v openssl >/dev/null || { echo "openssl is not installed" >&2; exit 1; }
command -v "${tensorbus%% *}" >/dev/null || { echo "$tensorbus is not installed; say TENSORBUS=..." >&2; exit 1; }
[ ! -e "$folder/tokens.json" ] || { echo "$folder holds secrets already" >&2; exit 1; }
for site in $sites; do
    case $site in
        *[!A-Za-z0-9_-]* | root | aggregator | prometheus) echo "no site can be called $site" >&2; exit 1 ;;
    esac
done
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
sign() { # NAME USAGE NAMES: NAME.pem and NAME.key
    cat >"$1.ext" <<END
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = $2
subjectAltName = $3
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
END
    openssl req -new $key -subj "/CN=$1" -keyout "$1.key" -out "$1.csr" 2>/dev/null
    openssl x509 -req -in "$1.csr" -CA ca.pem -CAkey ca.key -days 825 -extfile "$1.ext" -out "$1.pem" 2>/dev/null
    rm "$1.csr" "$1.ext"
}
sign server serverAuth "$names,DNS:gateway-1,DNS:gateway-2"

token() { # NAME RIGHTS...
    name=$1; shift
    $tensorbus token create "$name" "$@" --data . --json | sed 's/.*"token": *"\([^"]*\)".*/\1/' >"$name.token"
    grep -q '^tb_' "$name.token"
}
token root --admin '>'
token aggregator --admin "fl.$job.>"
for site in $sites; do
    [ "$site" != "$seeds" ] && set -- || set -- --publish "fl.$job.seed"
    token "$site" --publish "fl.$job.updates.$site" --subscribe "fl.$job.model" "$@"
done
token prometheus --subscribe metrics    # any token may read /metrics, and no message has this topic
openssl rand -hex 24 >grafana.password

# For compose.cluster.yaml: the proxy takes certificate and key as one file; the NATS servers have one user, and prove to
# each other that they belong together.
cat server.pem server.key >proxy.pem
sign nats serverAuth,clientAuth DNS:nats-1,DNS:nats-2,DNS:nats-3
openssl rand -hex 24 >nats.password
printf 'user: tensorbus, password: "%s"\n' "$(cat nats.password)" >nats.auth

# The users of the containers read the files, the folder keeps everybody else on this machine from them.
rm -f tokens.lock
chmod 0444 *.pem *.token server.key nats.key tokens.json *.password nats.auth
echo "secrets of the job $job are in $folder, for the broker as $names and the sites: $sites"
