package haproxy

import (
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/rebake/rebake/fleet"
)

// Status implements fleet.Router. A router that does not run is no error.
func (r *Router) Status(ctx context.Context) (fleet.RouterStatus, error) {
	st := fleet.RouterStatus{
		Listen:  r.cfg.Listen,
		Weights: map[fleet.Slot]int{fleet.Blue: 0, fleet.Green: 0},
		Members: map[fleet.Slot][]fleet.MemberStatus{},
	}
	live, err := r.live(ctx)
	if errors.Is(err, errDown) {
		return st, nil
	}
	if err != nil {
		return st, err
	}
	green, err := r.liveGreen(ctx)
	if err != nil {
		return st, err
	}
	st.Up, st.Members, st.Weights = true, live, weights(green)
	return st, nil
}

// live reads every server from HAProxy.
func (r *Router) live(ctx context.Context) (map[fleet.Slot][]fleet.MemberStatus, error) {
	state, err := r.ask(ctx, "show servers state")
	if err != nil {
		return nil, err
	}
	admin, err := parseServersState(state)
	if err != nil {
		return nil, err
	}
	stat, err := r.ask(ctx, "show stat")
	if err != nil {
		return nil, err
	}
	rows, err := parseStat(stat)
	if err != nil {
		return nil, err
	}
	out := map[fleet.Slot][]fleet.MemberStatus{}
	for _, row := range rows {
		for _, s := range slots {
			a, known := admin[serverName{row.proxy, row.server}]
			if row.proxy != r.backend(s) || !known { // not ours, or came or went between the two answers
				continue
			}
			out[s] = append(out[s], fleet.MemberStatus{
				Member:   fleet.Member{ID: row.server, Addr: row.addr},
				Admin:    a.word(),
				Check:    row.withCode(r.lastCode(row)).checkText(),
				Healthy:  row.healthy(r.hc.Type),
				InFlight: row.current + row.queued,
				Requests: row.total,
				Errors5x: row.errors5xx,
				Latency:  row.latency,
			})
		}
	}
	return out, nil
}

type serverName struct{ proxy, server string }

// adminState is HAProxy's srv_admin_state.
type adminState int

func (a adminState) word() string {
	const maint, drain = 0x01 | 0x02 | 0x04 | 0x20, 0x08 | 0x10
	switch {
	case a&maint != 0:
		return "maint"
	case a&drain != 0:
		return "drain"
	}
	return "ready"
}

// parseServersState reads "show servers state", format version 1.
func parseServersState(text string) (map[serverName]adminState, error) {
	lines := strings.Split(text, "\n")
	if strings.TrimSpace(lines[0]) != "1" || len(lines) < 2 || !strings.HasPrefix(lines[1], "# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state ") {
		return nil, fmt.Errorf("unexpected form of the router's server states: %.80q", text)
	}
	out := map[serverName]adminState{}
	for _, line := range lines[2:] {
		f := strings.Fields(line)
		if len(f) == 0 {
			continue
		}
		if len(f) < 7 {
			return nil, fmt.Errorf("unexpected line in the router's server states: %.80q", line)
		}
		n, err := strconv.Atoi(f[6])
		if err != nil || n < 0 {
			return nil, fmt.Errorf("unexpected state of server %.80q: %.40q", f[3], f[6])
		}
		out[serverName{f[1], f[3]}] = adminState(n)
	}
	return out, nil
}

// lastCode is the status code of a server's last check that ended. HAProxy
// forgets it (0) as soon as the next one starts, while the result still stands:
// of a slow server one would hardly ever see the code.
func (r *Router) lastCode(row statRow) string {
	key := row.proxy + "/" + row.server
	if row.check != "L7STS" {
		r.codes.Delete(key)
		return row.code
	}
	if row.code != "" && row.code != "0" {
		r.codes.Store(key, row.code)
		return row.code
	}
	if code, ok := r.codes.Load(key); ok {
		return code.(string)
	}
	return ""
}

func (s statRow) withCode(code string) statRow {
	s.code = code
	return s
}

// statRow is what is used of a server's line in "show stat".
type statRow struct {
	proxy, server, addr, status, check, code string
	current, queued                          int
	total, errors5xx                         int64
	rise, fall, health                       int
	latency                                  time.Duration // rtime: mean time to the answer's head
}

// checkText is the last check's result, with the status code if the code was wrong.
func (s statRow) checkText() string {
	if s.check == "L7STS" && s.code != "" {
		return s.check + "/" + s.code
	}
	return s.check
}

// healthy: the last check passed at the level that was asked for, and none
// failed of the last ones (HAProxy shows such a server as "UP 2/3").
func (s statRow) healthy(kind string) bool {
	ok := s.check == "L7OK" || kind == "tcp" && (s.check == "L4OK" || s.check == "L6OK")
	return ok && !strings.Contains(s.status, "/") && !strings.HasPrefix(s.status, "DOWN") &&
		s.rise > 0 && s.fall > 0 && s.health == s.rise+s.fall-1
}

// parseStat reads the servers' lines of "show stat" by the names in its header.
func parseStat(text string) ([]statRow, error) {
	body, ok := strings.CutPrefix(text, "# ")
	if !ok {
		return nil, fmt.Errorf("unexpected form of the router's statistics: %.80q", text)
	}
	rd := csv.NewReader(strings.NewReader(body))
	rd.ReuseRecord, rd.FieldsPerRecord, rd.LazyQuotes = true, -1, true
	head, err := rd.Read()
	if err != nil {
		return nil, fmt.Errorf("read the router's statistics: %w", err)
	}
	col := make(map[string]int, len(head))
	for i, h := range head {
		col[h] = i
	}
	for _, need := range []string{"pxname", "svname", "scur", "qcur", "stot", "status", "check_status", "check_code", "check_rise", "check_fall", "check_health", "hrsp_5xx", "addr", "type"} {
		if _, ok := col[need]; !ok {
			return nil, fmt.Errorf("the router's statistics have no column %q: is this HAProxy 2.6 or later?", need)
		}
	}
	var out []statRow
	for {
		rec, err := rd.Read()
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return nil, fmt.Errorf("read the router's statistics: %w", err)
		}
		get := func(name string) string {
			if i, ok := col[name]; ok && i < len(rec) {
				return rec[i]
			}
			return ""
		}
		if get("type") != "2" { // 2 is a server
			continue
		}
		var bad error
		num := func(name string) int64 {
			v := get(name)
			if v == "" {
				return 0
			}
			n, err := strconv.ParseInt(v, 10, 64)
			if err != nil {
				bad = fmt.Errorf("the router's statistics of %.80q: %s is %.40q", get("svname"), name, v)
			}
			return n
		}
		// "* L7OK" while the next check is under way; the result is the last one's.
		row := statRow{
			proxy: get("pxname"), server: get("svname"), addr: get("addr"), status: get("status"),
			check: strings.TrimPrefix(get("check_status"), "* "), code: get("check_code"),
			current: int(num("scur")), queued: int(num("qcur")), total: num("stot"), errors5xx: num("hrsp_5xx"),
			rise: int(num("check_rise")), fall: int(num("check_fall")), health: int(num("check_health")),
		}
		row.latency = time.Duration(num("rtime")) * time.Millisecond // 0 without the column, and in mode tcp
		if bad != nil {
			return nil, bad
		}
		out = append(out, row)
	}
}
