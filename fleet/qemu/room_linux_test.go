package qemu

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/rebake/rebake/fleet"
)

func TestTooLittleMemoryIsSaidBeforeAnythingStarts(t *testing.T) {
	p, b, _ := newPool(t)
	p.cfg.Memory = 1 << 50
	err := p.Launch(context.Background(), blue, fleet.Spec{Image: image(1), Size: 1})
	if !errors.Is(err, fleet.ErrNoCapacity) || !strings.Contains(err.Error(), "fleet.pool.qemu.memory") || len(b.running) != 0 {
		t.Errorf("launch: %v", err)
	}
}
