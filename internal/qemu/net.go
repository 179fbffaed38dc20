package qemu

import (
	"crypto/sha256"
	"fmt"
	"maps"
	"net"
	"slices"
)

// freePorts picks a host port on 127.0.0.1 for each guest port.
func freePorts(guest []int) (map[int]int, error) {
	ports := map[int]int{}
	for _, g := range guest {
		if ports[g] != 0 {
			continue
		}
		l, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			return nil, fmt.Errorf("find a free port: %w", err)
		}
		defer l.Close() // all held until all are chosen
		ports[g] = l.Addr().(*net.TCPAddr).Port
	}
	return ports, nil
}

func sortedPorts(m map[int]int) []int { return slices.Sorted(maps.Keys(m)) }

func (c Config) mac() string {
	if c.MAC != "" {
		return c.MAC
	}
	return macOf(c.Dir)
}

// macOf is a stable, locally administered address in QEMU's own range.
func macOf(dir string) string {
	h := sha256.Sum256([]byte(dir))
	return fmt.Sprintf("52:54:00:%02x:%02x:%02x", h[0], h[1], h[2])
}
