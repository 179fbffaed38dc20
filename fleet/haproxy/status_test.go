package haproxy

import (
	"strings"
	"testing"
)

const statHead = "# pxname,svname,qcur,qmax,scur,stot,status,check_status,check_code,check_rise,check_fall,check_health,hrsp_5xx,addr,type,\n"

func TestHealthIsReadFromTheWholeLine(t *testing.T) {
	for name, c := range map[string]struct {
		line, kind string
		want       bool
	}{
		"passed":                     {"b,s,0,0,0,9,UP,L7OK,200,2,3,4,0,127.0.0.1:1,2,", "http", true},
		"passed, next one under way": {"b,s,0,0,0,9,DRAIN,* L7OK,200,2,3,4,0,127.0.0.1:1,2,", "http", true},
		"one failed of late":         {"b,s,0,0,0,9,UP 2/3,L7OK,200,2,3,3,0,127.0.0.1:1,2,", "http", false},
		"coming back":                {"b,s,0,0,0,9,DOWN 1/2,L7OK,200,2,3,1,0,127.0.0.1:1,2,", "http", false},
		"wrong status":               {"b,s,0,0,0,9,DOWN,L7STS,500,2,3,0,0,127.0.0.1:1,2,", "http", false},
		"not checked yet":            {"b,s,0,0,0,9,DRAIN -1/3,INI,,2,3,2,0,127.0.0.1:1,2,", "http", false},
		"checks are off":             {"b,s,0,0,0,9,DRAIN,,,,,,0,127.0.0.1:1,2,", "http", false},
		"a connection is no answer":  {"b,s,0,0,0,9,UP,L4OK,,2,3,4,0,127.0.0.1:1,2,", "http", false},
		"unless it was asked for":    {"b,s,0,0,0,9,UP,L4OK,,2,3,4,0,127.0.0.1:1,2,", "tcp", true},
	} {
		rows, err := parseStat(statHead + c.line + "\n\n")
		if err != nil || len(rows) != 1 {
			t.Fatalf("%s: %v %v", name, rows, err)
		}
		if got := rows[0].healthy(c.kind); got != c.want {
			t.Errorf("%s: healthy is %t", name, got)
		}
	}
}

func TestStatisticsOfAnotherFormAreRefused(t *testing.T) {
	for name, text := range map[string]string{
		"empty":           "",
		"an error":        "Unknown command\n",
		"no column scur":  strings.Replace(statHead, "scur", "x", 1),
		"not a number":    statHead + "b,s,x,0,0,9,UP,L7OK,200,2,3,4,0,127.0.0.1:1,2,\n",
		"number too long": statHead + "b,s,99999999999999999999,0,0,9,UP,L7OK,200,2,3,4,0,127.0.0.1:1,2,\n",
	} {
		if rows, err := parseStat(text); err == nil {
			t.Errorf("%s: %v", name, rows)
		}
	}
}

func FuzzParseStat(f *testing.F) {
	f.Add(statHead + "b,s,0,0,0,9,UP,L7OK,200,2,3,4,0,127.0.0.1:1,2,\n")
	f.Add(statHead + "b,\"s\n,0")
	f.Add("# ")
	f.Fuzz(func(t *testing.T, text string) {
		rows, err := parseStat(text)
		if err != nil && rows != nil {
			t.Error("rows and an error")
		}
		for _, r := range rows {
			if r.healthy("http") && !strings.HasSuffix(r.check, "L7OK") {
				t.Errorf("healthy with %q", r.check)
			}
		}
	})
}

func FuzzParseServersState(f *testing.F) {
	f.Add("1\n# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state srv_uweight\n3 web_blue 1 a 127.0.0.1 2 8 1\n")
	f.Add("1\n")
	f.Fuzz(func(t *testing.T, text string) {
		states, err := parseServersState(text)
		for n, a := range states {
			if w := a.word(); err != nil || n.server == "" || w != "ready" && w != "drain" && w != "maint" {
				t.Errorf("%v is %q (%v)", n, w, err)
			}
		}
	})
}

func FuzzParseMap(f *testing.F) {
	f.Add("green 250\n")
	f.Add("green -1")
	f.Fuzz(func(t *testing.T, text string) {
		n, err := parseMap(text)
		if err != nil {
			return
		}
		w := weights(n)
		if sum := w["blue"] + w["green"]; w["blue"] < 0 || w["green"] < 0 || sum != 1000 && sum != 0 {
			t.Errorf("%q gives %v", text, w)
		}
	})
}
