#!/usr/bin/env bash
# Installs what `make e2e-vagrant` alone needs: Debian's vagrant with its libvirt
# provider, and libvirt. It says so first.
set -euo pipefail
export PATH="$PATH:/usr/sbin:/sbin"

missing=()
for p in vagrant:vagrant libvirtd:libvirt-daemon-system virsh:libvirt-clients dnsmasq:dnsmasq-base bsdtar:libarchive-tools; do
  command -v "${p%%:*}" >/dev/null || missing+=("${p#*:}")
done
if ! compgen -G '/usr/share/rubygems-integration/all/gems/vagrant-libvirt-*' >/dev/null; then missing+=(vagrant-libvirt); fi
((${#missing[@]})) || exit 0

if ! command -v apt-get >/dev/null; then
  echo "setup-vagrant: missing: ${missing[*]}, and this system has no apt. The test is of Debian's vagrant." >&2
  exit 1
fi
run=()
if [[ $(id -u) -ne 0 ]]; then
  command -v sudo >/dev/null || { echo "setup-vagrant: as root: apt-get install -y --no-install-recommends ${missing[*]}" >&2; exit 1; }
  run=(sudo env DEBIAN_FRONTEND=noninteractive)
fi
echo "setup-vagrant: installing ${missing[*]} (only for make e2e-vagrant; apt-get remove ${missing[*]} undoes it)"
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
trap 'rm -f "$log"' EXIT
if ! { "${run[@]}" apt-get update && "${run[@]}" apt-get -o DPkg::Lock::Timeout=120 install -y --no-install-recommends "${missing[@]}"; } >"$log" 2>&1; then
  tail -n 30 "$log" >&2
  echo "setup-vagrant: apt-get failed; mend it, then run make again" >&2
  exit 1
fi
