package fleet

// A place holder until judge.go and sample.go are written: overwrite this file.

import "time"

type Marks struct{}

func judge(g Gate, s []Sample, now time.Time) Finding { return Finding{Gate: g.Name, Verdict: Inconclusive} }
func worst(fs []Finding) Verdict {
	for _, f := range fs {
		if f.Verdict != Pass {
			return f.Verdict
		}
	}
	return Pass
}
func take(m Marks, st RouterStatus, s Slot, a, b map[string]Instance, now time.Time) (Marks, *Sample) {
	return m, nil
}
func keepSamples(s []Sample, x Sample) []Sample { return append(s, x) }
func (g Gate) complete(port int) (Gate, error)  { return g, nil }
