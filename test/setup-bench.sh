#!/usr/bin/env bash
# Installs what `make bench` alone needs: Debian's packer, which rebake is
# measured against, and iproute2 for the slow network. It says so first.
set -euo pipefail

missing=()
command -v packer >/dev/null || missing+=(packer)
PATH="$PATH:/usr/sbin:/sbin" command -v tc >/dev/null || missing+=(iproute2)
((${#missing[@]})) || exit 0

if ! command -v apt-get >/dev/null; then
  echo "setup-bench: missing: ${missing[*]}, and this system has no apt. The benchmark is against Debian's packer." >&2
  exit 1
fi
run=()
if [[ $(id -u) -ne 0 ]]; then
  command -v sudo >/dev/null || { echo "setup-bench: as root: apt-get install -y --no-install-recommends ${missing[*]}" >&2; exit 1; }
  run=(sudo env DEBIAN_FRONTEND=noninteractive)
fi
echo "setup-bench: installing ${missing[*]} (only for make bench; apt-get remove ${missing[*]} undoes it)"
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
trap 'rm -f "$log"' EXIT
if ! { "${run[@]}" apt-get update && "${run[@]}" apt-get install -y --no-install-recommends "${missing[@]}"; } >"$log" 2>&1; then
  tail -n 30 "$log" >&2
  echo "setup-bench: apt-get failed; mend it, then run make bench again" >&2
  exit 1
fi
