package fleet_test

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/rebake/rebake/fleet"
	"github.com/rebake/rebake/test/conformance"
)

func TestLocalHome(t *testing.T) {
	conformance.Home(t, func(t *testing.T) (fleet.Home, conformance.HomeOptions) {
		dir := t.TempDir()
		return fleet.Local(dir), conformance.HomeOptions{
			Other: func(*testing.T) fleet.Home { return fleet.Local(dir) },
			Damage: func(t *testing.T, name string) {
				path := filepath.Join(dir, name, "journal.jsonl")
				b, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, bytes.Replace(b, []byte(`{"n":2}`), []byte(`{"n":7}`), 1), 0o600); err != nil {
					t.Fatal(err)
				}
			},
			Lose: func(t *testing.T, name string) {
				if err := os.Remove(filepath.Join(dir, name, "fleet.json")); err != nil {
					t.Fatal(err)
				}
			},
		}
	})
}
