package haproxy

import "testing"

func TestTheStatusCodeStaysWhileTheNextCheckIsUnderWay(t *testing.T) {
	r := &Router{}
	see := func(check, code string) string {
		row := statRow{proxy: "web_blue", server: "web-1", check: check, code: code}
		return row.withCode(r.lastCode(row)).checkText()
	}
	for i, step := range []struct{ check, code, want string }{
		{"L7STS", "0", "L7STS"},       // never seen: no code is better than a wrong one
		{"L7STS", "500", "L7STS/500"}, // a check ended
		{"L7STS", "0", "L7STS/500"},   // the next one runs
		{"L7STS", "404", "L7STS/404"},
		{"L7OK", "200", "L7OK"},
		{"L7STS", "0", "L7STS"}, // it was well in between: the old code is no more
	} {
		if got := see(step.check, step.code); got != step.want {
			t.Errorf("step %d: %s, want %s", i, got, step.want)
		}
	}
}
