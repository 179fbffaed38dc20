package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rebake/rebake/fleet"
)

// The tables of three forecasts are as testdata has them; REBAKE_UPDATE=1 writes them anew.
func TestRenderForecast(t *testing.T) {
	for name, tt := range map[string]struct {
		p      fleet.Policy
		old    int
		memory int64
	}{
		"bluegreen": {fleet.Policy{Port: 80, KeepOld: 10 * time.Minute, OnFailure: "pause", Steps: []fleet.Step{{Permille: 125, Hold: 10 * time.Second, Pause: true}, {Permille: 1000, Hold: 20 * time.Second}},
			Gates: []fleet.Gate{{ErrorRate: &fleet.ErrorRateGate{Max: 0.01}}, {Command: &fleet.CommandGate{Args: []string{"./smoke"}}}}}, 2, 256 << 20},
		"rolling": {fleet.Policy{Port: 80, Strategy: fleet.Rolling, Roll: fleet.Roll{MaxSurge: 1}, Steps: []fleet.Step{{Permille: 1000, Hold: 10 * time.Second}}}, 2, 256 << 20},
		"first":   {fleet.Policy{Port: 80}, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := tt.p.Complete()
			if err != nil {
				t.Fatal(err)
			}
			f := fleet.ForecastFrom(p, 2, tt.old, tt.memory)
			got := renderForecast(f, "1a2b3c4d5e6f", "web.yaml")
			path := filepath.Join("testdata", "forecast-"+name+".txt")
			if os.Getenv("REBAKE_UPDATE") != "" {
				if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if want, err := os.ReadFile(path); err != nil || string(want) != got {
				t.Errorf("%v; it differs from %s:\n%s", err, path, got)
			}
			for _, line := range strings.Split(strings.TrimSpace(got), "\n") {
				if strings.TrimRight(line, " ") != line {
					t.Errorf("space at the end of %q", line)
				}
			}
		})
	}
}
