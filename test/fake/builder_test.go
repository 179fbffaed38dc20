package fake_test

import (
	"fmt"
	"path/filepath"
	"testing"

	"github.com/rebake/rebake/builder"
	"github.com/rebake/rebake/test/conformance"
	"github.com/rebake/rebake/test/fake"
)

func TestBuilder(t *testing.T) { conformance.Builder(t, builderWorld) }

func TestCheckpointer(t *testing.T) { conformance.Checkpointer(t, builderWorld) }

func builderWorld(t *testing.T) conformance.BuilderWorld {
	dir := t.TempDir()
	var all []*fake.Builder
	open := func(*testing.T) *fake.Builder {
		b := &fake.Builder{Dir: filepath.Join(dir, "builds"), Cache: filepath.Join(dir, "cache")}
		all = append(all, b)
		return b
	}
	first := open(t)
	return conformance.BuilderWorld{
		Builder: first, Port: 80,
		Again: func(t *testing.T) builder.Builder { return open(t) },
		Other: func(t *testing.T) builder.Builder {
			b := open(t)
			b.Base = map[string]string{"etc/motd": "another"}
			return b
		},
		Fetched: func() (n int) {
			for _, b := range all {
				n += b.Fetched()
			}
			return n
		},
		Kill: func(t *testing.T, id string) { first.Crash(id) },
		Leftovers: func(t *testing.T) (left []string) {
			ids, err := first.Machines()
			if err != nil {
				t.Fatal(err)
			}
			for _, id := range ids {
				pids, err := first.Commands(id)
				if err != nil {
					t.Fatal(err)
				}
				left = append(left, fmt.Sprintf("machine %s with processes %v", id, pids))
			}
			return left
		},
	}
}
