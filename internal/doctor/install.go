package doctor

// installer is how this machine installs packages.
type installer string

const (
	apt    installer = "apt"
	brew   installer = "brew"
	dnf    installer = "dnf"
	pacman installer = "pacman"
	none   installer = ""
)

func (m machine) findInstaller() installer {
	if m.os == "darwin" {
		return brew
	}
	if _, err := m.look("apt-get"); err == nil {
		return apt
	}
	for _, i := range []installer{dnf, pacman} {
		if _, err := m.look(string(i)); err == nil {
			return i
		}
	}
	return none
}

// packages names each part's package; "" where the system has none.
func (m machine) packages(part string) map[installer]string {
	x86 := m.arch == "amd64"
	switch part {
	case "qemu":
		if x86 {
			return map[installer]string{apt: "qemu-system-x86", brew: "qemu", dnf: "qemu-system-x86-core", pacman: "qemu-system-x86"}
		}
		return map[installer]string{apt: "qemu-system-arm", brew: "qemu", dnf: "qemu-system-aarch64-core", pacman: "qemu-system-aarch64"}
	case "qemu-img":
		return map[installer]string{apt: "qemu-utils", brew: "qemu", dnf: "qemu-img", pacman: "qemu-img"}
	case "haproxy":
		return map[installer]string{apt: "haproxy", brew: "haproxy", dnf: "haproxy", pacman: "haproxy"}
	case "mmdebstrap":
		return map[installer]string{apt: "mmdebstrap", dnf: "mmdebstrap"}
	case "apt":
		return map[installer]string{dnf: "apt"}
	case "mke2fs":
		return map[installer]string{apt: "e2fsprogs", dnf: "e2fsprogs", pacman: "e2fsprogs"}
	case "git":
		return map[installer]string{apt: "git", brew: "git", dnf: "git", pacman: "git"}
	case "grub":
		return map[installer]string{apt: "grub-pc-bin", dnf: "grub2-pc-modules"}
	case "grub-mkimage":
		return map[installer]string{apt: "grub-common"}
	case "unshare":
		return map[installer]string{apt: "util-linux", dnf: "util-linux", pacman: "util-linux"}
	case "uidmap":
		return map[installer]string{apt: "uidmap", dnf: "shadow-utils", pacman: "shadow"}
	case "firmware":
		return map[installer]string{apt: "qemu-efi-aarch64", brew: "qemu", dnf: "edk2-aarch64", pacman: "edk2-aarch64"}
	}
	return nil
}

// fix is the command that installs a part, or what to do where there is none.
func (m machine) fix(part string) string {
	names := m.packages(part)
	pkg := names[m.installer]
	if pkg == "" {
		if deb := names[apt]; deb != "" {
			return "no command known for this system: install what Debian calls " + deb
		}
		return "no command known for this system"
	}
	sudo := "sudo "
	if m.root {
		sudo = ""
	}
	switch m.installer {
	case brew:
		return "brew install " + pkg
	case dnf:
		return sudo + "dnf install -y " + pkg
	case pacman:
		return sudo + "pacman -S --needed " + pkg
	}
	if !m.glob("/var/lib/apt/lists/*Packages*") {
		return sudo + "apt-get update && " + sudo + "apt-get install -y " + pkg
	}
	return sudo + "apt-get install -y " + pkg
}
