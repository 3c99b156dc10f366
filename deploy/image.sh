#!/usr/bin/env bash
# Packs bin/broker as an image from scratch: the static program, the roots that
# TLS to AWS and PostgreSQL is checked with, and a user that is not root. It needs
# no container engine. The same program and roots give the same digest.
#
#   deploy/image.sh IMAGE OUT.tar     e.g. keybroker:dev bin/image.tar
#
# Load it with docker load, ctr images import, podman load or crane push.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
image=$1 out=$2
crane=${CRANE:?the path of crane; make image sets it}

# Where distributions keep the roots (crypto/x509, root_linux.go).
for roots in /etc/ssl/certs/ca-certificates.crt /etc/pki/tls/certs/ca-bundle.crt /etc/ssl/cert.pem none; do
  [[ -r $roots ]] && break
done
if [[ $roots == none ]]; then
  echo "found no CA certificates; install the package ca-certificates" >&2
  exit 1
fi

# What the program says of itself, which need not run on this machine.
built=$(go version -m bin/broker)
version=$(awk '$1 == "mod" {print $3}' <<<"$built")
arch=$(sed -n 's/^[[:space:]]*build[[:space:]]*GOARCH=//p' <<<"$built")
if [[ -z $version || -z $arch || $built != *GOOS=linux* ]]; then
  echo "bin/broker is no program for Linux that says its version" >&2
  exit 1
fi

registry=
work=$(mktemp -d)
trap '[[ -z $registry ]] || kill "$registry" 2>/dev/null || true; rm -rf "$work"' EXIT
mkdir -p "$work/root/etc/ssl/certs"
install -m 0755 bin/broker "$work/root/broker"
install -m 0644 "$roots" "$work/root/etc/ssl/certs/ca-certificates.crt"
printf 'nonroot:x:65532:65532::/:/broker\n' >"$work/root/etc/passwd"
tar --create --file "$work/layer.tar" --directory "$work/root" --sort=name \
  --mtime=@0 --owner=0 --group=0 --numeric-owner .

# crane edits images in a registry only, so it serves one for a moment.
coproc REGISTRY { exec "$crane" registry serve --address 127.0.0.1:0 2>&1; }
registry=$REGISTRY_PID
exec 3<&"${REGISTRY[0]}"
port=
while [[ -z $port ]] && read -r line <&3; do
  [[ $line =~ port\ ([0-9]+) ]] && port=${BASH_REMATCH[1]}
done
cat <&3 >/dev/null & # its log must not fill the pipe
[[ -n $port ]] || { echo "crane serves no registry" >&2; exit 1; }

at=127.0.0.1:$port/${image##*/}
crane() { # quiet, unless it fails
  "$crane" "$@" 2>"$work/log" || { cat "$work/log" >&2; return 1; }
}
crane append --oci-empty-base --new_layer "$work/layer.tar" --new_tag "$at" >/dev/null
crane mutate "$at" --tag "$at" --set-platform "linux/$arch" \
  --entrypoint /broker --user 65532:65532 --workdir / \
  --label "org.opencontainers.image.title=keybroker" \
  --label "org.opencontainers.image.version=$version" >/dev/null
digest=$(crane digest "$at")
crane pull "$at" "$work/image.tar"

# The archive names the registry of the moment; it is to name the image.
mkdir "$work/archive"
tar --extract --file "$work/image.tar" --directory "$work/archive"
sed -i "s|$at|$image|" "$work/archive/manifest.json"
tar --create --file "$out" --directory "$work/archive" --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner \
  --transform 's|^\./||' .
echo "$out is $image, $digest"
