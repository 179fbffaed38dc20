#!/usr/bin/env bash
# Installs the external parts that are missing, and nothing twice. It says what
# it is about to install, and what to do where there is no apt.
set -euo pipefail

# command or file → Debian package
parts=(
  qemu-system-x86_64:qemu-system-x86
  qemu-img:qemu-utils
  mmdebstrap:mmdebstrap
  haproxy:haproxy
  git:git
  mke2fs:e2fsprogs
  depmod:kmod
  cpio:cpio
  zstd:zstd
  grub-mkimage:grub-common
  /usr/lib/grub/i386-pc/boot.img:grub-pc-bin
  /usr/sbin/dropbear:dropbear-bin
  /usr/lib/openssh/sftp-server:openssh-sftp-server
  /usr/bin/busybox:busybox-static
)

# A user other than root makes a Debian base in a user namespace of its own.
[[ $(id -u) -eq 0 ]] || parts+=(newuidmap:uidmap)

missing=()
for p in "${parts[@]}"; do
  what=${p%%:*} package=${p#*:}
  if [[ $what == /* ]]; then
    [[ -e $what ]] || missing+=("$package")
  else
    PATH="$PATH:/usr/sbin:/sbin" command -v "$what" >/dev/null || missing+=("$package")
  fi
done
if ! { [[ -x /usr/bin/busybox ]] && /usr/bin/busybox --list | grep -qx httpd; }; then
  [[ " ${missing[*]-} " == *" busybox-static "* ]] || missing+=(busybox-static)
fi
# The tiny guest of the tests takes Debian's kernel from apt, whose lists may be missing.
lists=1
if command -v apt-cache >/dev/null && ! apt-cache show linux-image-cloud-amd64 >/dev/null 2>&1; then lists=0; fi
((${#missing[@]} || lists == 0)) || exit 0

if ! command -v apt-get >/dev/null; then
  echo "setup: missing, and this system has no apt. Install what provides these, then run make again:" >&2
  printf '  %s\n' "${missing[@]}" >&2
  echo "  (macOS: brew install qemu haproxy; Fedora: dnf install qemu-kvm qemu-img haproxy e2fsprogs busybox)" >&2
  exit 1
fi
run=()
if [[ $(id -u) -ne 0 ]]; then
  command -v sudo >/dev/null || { echo "setup: as root: apt-get update && apt-get install -y --no-install-recommends ${missing[*]-}" >&2; exit 1; }
  run=(sudo env DEBIAN_FRONTEND=noninteractive)
fi
if ((${#missing[@]})); then echo "setup: installing ${missing[*]}"; else echo "setup: reading apt's package lists"; fi
log=$(mktemp)
trap 'rm -f "$log"' EXIT
export DEBIAN_FRONTEND=noninteractive
if ! { "${run[@]}" apt-get update && { ((${#missing[@]} == 0)) || "${run[@]}" apt-get install -y --no-install-recommends "${missing[@]}"; }; } >"$log" 2>&1; then
  tail -n 30 "$log" >&2
  echo "setup: apt-get failed; mend it, then run make again" >&2
  exit 1
fi
echo "setup: done"
