#!/usr/bin/env bash
# Installs the external parts that are missing, and nothing twice. It says what
# it is about to install, and what to do where there is no apt.
set -euo pipefail

root=${REBAKE_SETUP_ROOT:-} # where files are looked for; of its own test
system=$(uname -s) machine=$(uname -m)

# command or file → Debian package
parts=(
  qemu-img:qemu-utils
  haproxy:haproxy
  git:git
)
if [[ $system == Linux ]]; then
  parts+=(
    mke2fs:e2fsprogs
    depmod:kmod
    cpio:cpio
    zstd:zstd
    docker-registry:docker-registry
    /usr/sbin/dropbear:dropbear-bin
    /usr/lib/openssh/sftp-server:openssh-sftp-server
    /usr/bin/busybox:busybox-static
  )
fi
# Guests are of this machine's architecture. Debian bases, and with them make
# test and make demo, are for amd64 so far.
case $machine in
  aarch64 | arm64) parts+=(qemu-system-aarch64:qemu-system-arm) ;;
  *) parts+=(qemu-system-x86_64:qemu-system-x86) ;;
esac
bases=0
case $system-$machine in
  Linux-x86_64)
    bases=1
    parts+=(mmdebstrap:mmdebstrap grub-mkimage:grub-common /usr/lib/grub/i386-pc/boot.img:grub-pc-bin)
    # A user other than root makes a Debian base in a user namespace of its own.
    [[ $(id -u) -eq 0 ]] || parts+=(newuidmap:uidmap)
    ;;
  Linux-*) parts+=(/usr/share/AAVMF/AAVMF_CODE.fd:qemu-efi-aarch64) ;;
esac

missing=() whats=()
for p in "${parts[@]}"; do
  what=${p%%:*} package=${p#*:}
  if [[ $what == /* ]]; then
    [[ -e $root$what ]] && continue
  else
    (PATH="$PATH:$root/usr/sbin:$root/sbin" && command -v "$what" >/dev/null) && continue
  fi
  missing+=("$package") whats+=("$what (Debian: $package)")
done
# The busybox package is smaller than busybox-static and takes its place.
busybox=$root/usr/bin/busybox
if [[ $system == Linux && -e $busybox ]] && ! "$busybox" --list | grep -x httpd >/dev/null; then
  missing+=(busybox-static) whats+=("a busybox with httpd (Debian: busybox-static)")
fi

# The tiny guest of the tests takes Debian's kernel from apt, whose lists may be missing.
lists=1
if ((bases)) && command -v apt-get >/dev/null && ! compgen -G "$root/var/lib/apt/lists/*_Packages*" >/dev/null; then lists=0; fi
((${#missing[@]} || lists == 0)) || exit 0

if ! command -v apt-get >/dev/null; then
  {
    echo "setup: this system has no apt, and these are missing:"
    printf '  %s\n' "${whats[@]}"
    if [[ $system == Darwin ]]; then
      echo "Install them (brew install qemu haproxy git), then run make again."
    elif command -v dnf >/dev/null; then
      echo "Install what provides them (sudo dnf install qemu-system-x86-core qemu-img haproxy git e2fsprogs kmod cpio zstd dropbear busybox), then run make again."
    elif command -v pacman >/dev/null; then
      echo "Install what provides them (sudo pacman -S --needed qemu-base haproxy git e2fsprogs kmod cpio zstd dropbear busybox), then run make again."
    else
      echo "Install what provides them, then run make again."
    fi
    echo "To use rebake none but qemu and haproxy are needed: make build, then bin/rebake doctor. make test and make demo"
    echo "bake Debian images with Debian's own tools: run them on Debian, for example in a virtual machine."
  } >&2
  exit 1
fi

install=(apt-get -o DPkg::Lock::Timeout=120 install -y --no-install-recommends)
as_root=()
if [[ $(id -u) -ne 0 ]]; then
  if ! command -v sudo >/dev/null; then
    advice="apt-get update"
    ((${#missing[@]} == 0)) || advice+=" && apt-get install -y --no-install-recommends ${missing[*]}"
    echo "setup: there is no sudo: as root run: $advice" >&2
    exit 1
  fi
  as_root=(sudo)
fi
# By env: sudo drops the environment.
run() { ${as_root[@]+"${as_root[@]}"} env DEBIAN_FRONTEND=noninteractive "$@" >>"$log" 2>&1; }
failed() {
  tail -n 30 "$log" >&2
  echo "setup: apt-get $1 failed; mend it, then run make again" >&2
  exit 1
}

log=$(mktemp)
trap 'rm -f "$log"' EXIT
if ((${#missing[@]} == 0)); then
  echo "setup: reading apt's package lists"
  run apt-get update || failed update
else
  echo "setup: installing ${missing[*]}"
  # A source that cannot be reached need not be the one that has them.
  run apt-get update || echo "setup: apt-get update failed; trying with the lists that are there" >&2
  run "${install[@]}" "${missing[@]}" || failed install
fi
echo "setup: done"
