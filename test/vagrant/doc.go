// Package vagrant holds `make e2e-vagrant`: rebake's boxes in Debian's own
// Vagrant, under a build tag because Vagrant, its libvirt provider and libvirt are
// some seventy packages that nothing else here needs.
package vagrant
