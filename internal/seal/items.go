package seal

import "strings"

// Item is one thing that must not travel in an image. Its parts are POSIX shell
// that runs as root, in a subshell of its own, with stdin empty; $R stands before
// every path (empty in a guest, a directory in tests), `live` is true in a guest
// only, `homes` lists home directories.
type Item struct {
	ID       string
	Describe string
	Applies  string // whether there is anything to do; "" is always
	Fix      string // "" for an item that only looks
	Check    string // true once sealed; what it prints is the reason
	Boot     string // true in a fresh boot of the sealed image; "" cannot be seen there
}

// Items is the sealing list, in the order in which it is worked through: the
// build key goes last, so that a failure before it can be looked into.
func Items() []Item {
	return []Item{
		{
			ID: "cloud-init", Describe: "cloud-init runs again at the first boot of an instance",
			Applies: `[ -d "$R/var/lib/cloud" ] || [ -e "$R/etc/netplan/50-cloud-init.yaml" ]`,
			Fix: `if live && command -v cloud-init; then cloud-init clean --logs --seed --configs all || cloud-init clean --logs --seed || cloud-init clean --logs; fi
rm -rf "$R"/var/lib/cloud/instance "$R"/var/lib/cloud/instances "$R"/var/lib/cloud/sem "$R"/var/lib/cloud/data "$R"/var/lib/cloud/seed
rm -f "$R"/etc/netplan/50-cloud-init.yaml "$R"/etc/network/interfaces.d/50-cloud-init`,
			Check: `none "$R"/var/lib/cloud/instance "$R"/var/lib/cloud/instances "$R"/etc/netplan/50-cloud-init.yaml`,
		},
		{
			ID: "machine-id", Describe: "each instance makes a machine-id of its own",
			// Empty, not "uninitialized": the latter means a first boot, on which systemd
			// enables again every unit that the template disabled.
			Applies: `[ -e "$R/etc/machine-id" ] || [ -e "$R/var/lib/dbus/machine-id" ]`,
			Fix: `[ ! -e "$R/etc/machine-id" ] || : >"$R/etc/machine-id"
if [ -e "$R/var/lib/dbus/machine-id" ] || [ -L "$R/var/lib/dbus/machine-id" ]; then rm -f "$R/var/lib/dbus/machine-id"; ln -s /etc/machine-id "$R/var/lib/dbus/machine-id"; fi`,
			Check: `[ ! -s "$R/etc/machine-id" ] || { echo "/etc/machine-id holds an id"; exit 1; }`,
			Boot:  `[ -s "$R/etc/machine-id" ] || [ ! -d "$R/run/systemd/system" ] || { echo "no machine-id was made"; exit 1; }`,
		},
		{
			ID: "ssh-host-keys", Describe: "no SSH host key is shared; an instance that is not given one makes it",
			Applies: hostKeys, Fix: hostKeysFix, Check: hostKeysCheck,
			Boot: `ls "$R"/etc/ssh/ssh_host_*_key "$R"/etc/dropbear/*_host_key >/dev/null 2>&1 && exit 0
for k in "$R"/etc/ssh/ssh_host_*_key "$R"/etc/dropbear/*_host_key; do [ ! -e "$k" ] || exit 0; done
[ ! -d "$R/etc/ssh" ] && [ ! -d "$R/etc/dropbear" ] || { echo "no host key was made"; exit 1; }`,
		},
		{
			ID: "random-seed", Describe: "no two instances start from the same random seed",
			// The unit writes the seed when it stops, which must not be at the shutdown
			// (and not by a drop-in: daemon-reload takes seconds in a slow guest).
			Fix: `if live && [ -d /run/systemd/system ]; then systemctl stop systemd-random-seed.service; fi
rm -f "$R"/var/lib/systemd/random-seed "$R"/var/lib/urandom/random-seed "$R"/var/lib/random-seed "$R"/var/lib/seedrng/seed* "$R"/boot/loader/random-seed "$R"/boot/efi/loader/random-seed "$R"/efi/loader/random-seed`,
			Check: `none "$R"/var/lib/systemd/random-seed "$R"/var/lib/urandom/random-seed "$R"/boot/loader/random-seed "$R"/boot/efi/loader/random-seed "$R"/efi/loader/random-seed || exit 1
! live || [ ! -d /run/systemd/system ] || ! systemctl -q is-active systemd-random-seed.service || { echo "systemd-random-seed would write a seed at shutdown"; exit 1; }`,
		},
		{
			ID: "credential-secret", Describe: "the key of encrypted systemd credentials is each instance's own",
			Fix:   `rm -f "$R"/var/lib/systemd/credential.secret`,
			Check: `none "$R"/var/lib/systemd/credential.secret`,
		},
		{
			ID: "network", Describe: "no lease, no address, no interface name of the build",
			Fix: `rm -f "$R"/var/lib/dhcp/*lease* "$R"/var/lib/dhclient/*lease* "$R"/var/lib/dhcpcd/*lease* "$R"/var/lib/NetworkManager/*lease* "$R"/var/lib/NetworkManager/secret_key "$R"/var/lib/NetworkManager/timestamps "$R"/etc/udev/rules.d/70-persistent-net.rules
for f in "$R"/etc/sysconfig/network-scripts/ifcfg-*; do [ ! -f "$f" ] || sed -i '/^HWADDR=/d;/^UUID=/d' "$f"; done`,
			Check: `none "$R"/var/lib/dhcp/*lease* "$R"/var/lib/dhclient/*lease* "$R"/var/lib/NetworkManager/*lease* "$R"/etc/udev/rules.d/70-persistent-net.rules`,
		},
		{
			ID: "hostname", Describe: "an instance is named when it is made",
			Applies: `[ -s "$R/etc/hostname" ]`,
			Fix:     `echo localhost >"$R/etc/hostname"`,
			Check:   `[ "$(cat "$R/etc/hostname")" = localhost ] || { echo "/etc/hostname is $(cat "$R/etc/hostname")"; exit 1; }`,
		},
		{
			ID: "package-caches", Describe: "no downloaded packages or lists",
			// What apt-get clean would remove, without the third of a second that it
			// takes in a slow guest to read its lists first.
			Fix: `! live || ! command -v dnf || dnf -q clean all
rm -rf "$R"/var/lib/apt/lists/* "$R"/var/cache/apt/*.bin "$R"/var/cache/apt/archives/*.deb "$R"/var/cache/apt/archives/partial/* "$R"/var/cache/apk/* "$R"/root/.cache/pip "$R"/root/.npm`,
			Check: `none "$R"/var/lib/apt/lists/*Packages* "$R"/var/cache/apt/archives/*.deb`,
		},
		{
			ID: "backups", Describe: "no old copies of the account files",
			Fix:   `rm -f "$R"/etc/passwd- "$R"/etc/shadow- "$R"/etc/group- "$R"/etc/gshadow- "$R"/etc/subuid- "$R"/etc/subgid-`,
			Check: `none "$R"/etc/passwd- "$R"/etc/shadow- "$R"/etc/group- "$R"/etc/gshadow- "$R"/etc/subuid- "$R"/etc/subgid-`,
		},
		{
			ID: "agents", Describe: "agents enrol each instance anew",
			Fix:   `rm -rf "$R"/var/lib/amazon/ssm/* "$R"/etc/puppetlabs/puppet/ssl "$R"/var/lib/puppet/ssl "$R"/etc/chef/client.pem "$R"/etc/salt/pki/minion "$R"/etc/salt/minion_id "$R"/var/lib/docker/engine-id "$R"/var/lib/tailscale/tailscaled.state "$R"/etc/lvm/devices/system.devices`,
			Check: `none "$R"/etc/puppetlabs/puppet/ssl "$R"/var/lib/puppet/ssl "$R"/etc/chef/client.pem "$R"/etc/salt/pki/minion "$R"/etc/salt/minion_id "$R"/var/lib/docker/engine-id "$R"/var/lib/tailscale/tailscaled.state "$R"/etc/lvm/devices/system.devices`,
		},
		{
			ID: "leftovers", Describe: "no shell history, mail, crash dumps or temporary files",
			Fix: `homes | while IFS= read -r h; do for f in .bash_history .ash_history .sh_history .python_history .viminfo .lesshst .wget-hsts; do [ ! -e "$h/$f" ] || rm -f "$h/$f"; done; done
for f in "$R"/tmp/* "$R"/tmp/.[!.]* "$R"/var/tmp/* "$R"/var/tmp/.[!.]* "$R"/var/crash/* "$R"/var/lib/systemd/coredump/* "$R"/var/mail/* "$R"/var/spool/mail/*; do case $f in */systemd-private-*|*/.X11-unix|*/.ICE-unix|*/.XIM-unix|*/.font-unix|*/.Test-unix) ;; *) [ ! -e "$f" ] && [ ! -L "$f" ] || rm -rf "$f";; esac; done`,
			Check: `homes | { while IFS= read -r h; do [ ! -s "$h/.bash_history" ] || { echo "$h/.bash_history is there"; exit 1; }; done; }`,
		},
		{
			ID: "logs", Describe: "logs begin with the instance",
			Fix: `if live && [ -d /var/log/journal ] && command -v journalctl; then journalctl --relinquish-var; fi
rm -rf "$R"/var/log/journal/*
find "$R"/var/log -type f \( -name '*.gz' -o -name '*.xz' -o -name '*.old' -o -name '*.[0-9]' \) -exec rm -f {} +
find "$R"/var/log -type f -exec sh -c 'for f; do : >"$f"; done' sh {} +`,
			Check: `[ -z "$(find "$R"/var/log/journal -type f 2>/dev/null)" ] || { echo "the journal holds entries of the build"; exit 1; }`,
		},
		{
			ID: "credentials", Describe: "no credentials that a step left in a home directory",
			Check: `homes | { bad=; while IFS= read -r h; do for f in .aws/credentials .docker/config.json .netrc .git-credentials .config/gcloud/credentials.db .azure/accessTokens.json .ssh/id_rsa .ssh/id_ecdsa .ssh/id_ed25519; do [ ! -s "$h/$f" ] || bad="$bad $h/$f"; done; done; [ -z "$bad" ] || { echo "remove in a step:$bad"; exit 1; }; }`,
		},
		{
			ID: "trim", Describe: "free blocks are given back, so that they are not stored",
			Applies: `live && command -v fstrim`,
			Fix:     `sync; fstrim -a || fstrim /`,
			Check:   `true`,
		},
		{
			ID: buildKeyID, Describe: "the key of the build is gone from every account",
			Fix:   buildKeyFix,
			Check: `f=$(grep -lF "$BLOB" $(keyfiles) /dev/null 2>/dev/null); [ -z "$f" ] || { echo "still in $f"; exit 1; }`,
			Boot: `t=$(sed -n 's/^build-key //p' "$R/` + record + `" 2>/dev/null); [ -n "$t" ] || { echo "/` + record + ` is missing: the image was not sealed"; exit 1; }
f=$(grep -lF "$t" $(keyfiles) /dev/null 2>/dev/null); [ -z "$f" ] || { echo "still in $f"; exit 1; }`,
		},
	}
}

const (
	buildKeyID = "build-key"
	// record keeps the end of the build's public key, so that a fresh boot can
	// be searched for it. It is worth nothing to anybody else.
	record = "var/lib/rebake/seal"
)

// An authorized_keys file that holds nothing else goes too: first-boot seeding
// may write it only where there is none.
const buildKeyFix = `keyfiles | tr ' ' '\n' | while IFS= read -r f; do
  [ -f "$f" ] && grep -qF "$BLOB" "$f" || continue
  if grep -vF "$BLOB" "$f" | grep -q '[^[:space:]]'; then
    t="$f.rebake"; cp -p "$f" "$t" && grep -vF "$BLOB" "$f" >"$t" && mv -f "$t" "$f"
  else rm -f "$f"; fi
done
mkdir -p "$R/var/lib/rebake" && chmod 755 "$R/var/lib/rebake" && echo "build-key $TAIL" >"$R/` + record + `"`

const hostKeys = `[ -e "$R/etc/ssh/sshd_config" ] || [ -d "$R/etc/dropbear" ] || ls "$R"/etc/ssh/ssh_host_*_key >/dev/null 2>&1`

// hostKeysFix sees to it that something makes new keys before it removes the old.
const hostKeysFix = `if makes_keys; then :; else if [ -d "$R/run/systemd/system" ]; then
  mkdir -p "$R/etc/systemd/system/multi-user.target.wants"
  cat >"$R/etc/systemd/system/rebake-ssh-host-keys.service" <<'UNIT'
[Unit]
Description=Make SSH host keys where there are none
Before=ssh.service sshd.service ssh.socket sshd.socket
ConditionPathExistsGlob=!/etc/ssh/ssh_host_*_key

[Service]
Type=oneshot
ExecStart=/usr/bin/env ssh-keygen -A

[Install]
WantedBy=multi-user.target
UNIT
  ln -sf ../rebake-ssh-host-keys.service "$R/etc/systemd/system/multi-user.target.wants/rebake-ssh-host-keys.service"
fi; makes_keys; fi && rm -f "$R"/etc/ssh/ssh_host_*_key "$R"/etc/ssh/ssh_host_*_key.pub "$R"/etc/dropbear/*_host_key "$R"/etc/dropbear/*_host_key.pub`

const hostKeysCheck = `makes_keys || { echo "nothing in this guest makes new SSH host keys: start sshd after ssh-keygen -A, or dropbear with -R"; exit 1; }
none "$R"/etc/ssh/ssh_host_*_key "$R"/etc/dropbear/*_host_key`

// functions are what the items' parts may call.
var functions = strings.TrimSpace(`
live() { [ -z "$R" ]; }
none() { for n; do [ ! -e "$n" ] && [ ! -L "$n" ] || { echo "$n is there"; return 1; }; done; }
homes() { seen=" "; { echo ":::::/root:"; cat "$R/etc/passwd"; } | while IFS=: read -r _ _ _ _ _ h _; do case $h in ""|/) ;; *) case $seen in *" $h "*) ;; *) seen="$seen$h "; [ ! -d "$R$h" ] || echo "$R$h";; esac;; esac; done; }
keyfiles() { l=; for h in $(homes); do for f in "$h"/.ssh/authorized_keys "$h"/.ssh/authorized_keys2; do [ ! -f "$f" ] || l="$l $f"; done; done
  for f in "$R"/etc/ssh/authorized_keys.d/* "$R"/etc/ssh/authorized_keys/* "$R"/etc/dropbear/authorized_keys; do [ ! -f "$f" ] || l="$l $f"; done; echo $l; }
makes_keys() {
  [ -e "$R/usr/bin/cloud-init" ] && [ ! -e "$R/etc/cloud/cloud-init.disabled" ] && return 0
  for d in "$R/etc/systemd/system" "$R/usr/lib/systemd/system" "$R/lib/systemd/system" "$R/etc/init.d" "$R/etc/inittab" "$R/etc/rc.local" "$R/init" "$R/sbin/init" "$R/etc/rc"; do
    case $d in "$R/lib/"*) [ ! -L "$R/lib" ] || continue;; esac # seen as /usr/lib
    [ ! -e "$d" ] || ! grep -rqs -e 'ssh-keygen -A' -e 'sshd-keygen' -e 'dropbearkey' -e 'dropbear .*-[A-Za-z]*R' "$d" || return 0
  done
  return 1
}
`)
