package fleet

import (
	"context"
	"time"
)

// Stage is a moment of a deployment that hooks can be told of.
type Stage string

// The stages.
const (
	StageStart      Stage = "start"       // the plan is written
	StageTraffic    Stage = "traffic"     // the weights of a step were written
	StagePaused     Stage = "paused"      // it waits for a person
	StagePromoted   Stage = "promoted"    // all traffic is on the new slot, its last hold is over
	StageDone       Stage = "done"        // the old slot is gone
	StageFailed     Stage = "failed"      // the way back begins
	StageRolledBack Stage = "rolled-back" // the old slot serves alone
	StageBlocked    Stage = "blocked"     // nothing is touched until a person decides
)

// Hook is told of stages: a program, which gets the Notice as JSON on its
// standard input, or a URL, to which it is posted. A hook that fails is a
// warning; what must hold for going on is a Gate.
type Hook struct {
	On      []Stage       `json:"on,omitempty"` // none: all
	Args    []string      `json:"args,omitempty"`
	URL     string        `json:"url,omitempty"`
	Timeout time.Duration `json:"timeout"` // default 10s
}

// Notice is the payload of a hook, version 1: fields are only ever added.
type Notice struct {
	Version    int       `json:"version"` // 1
	Key        string    `json:"key"`     // this moment of the deployment: the same if it is told again
	Stage      Stage     `json:"stage"`
	Fleet      string    `json:"fleet"`
	Deployment string    `json:"deployment"`
	By         string    `json:"by"`
	Time       time.Time `json:"time"`
	Began      time.Time `json:"began"`
	Image      string    `json:"image"` // name:version
	Digest     string    `json:"digest"`
	From       string    `json:"from,omitempty"` // name:version
	FromDigest string    `json:"from_digest,omitempty"`
	Slot       Slot      `json:"slot"`
	State      State     `json:"state"`
	Step       int       `json:"step"`    // index into the steps
	Percent    float64   `json:"percent"` // of the traffic, to the new slot
	Reason     string    `json:"reason,omitempty"`
	Findings   []Finding `json:"findings,omitempty"`
	Rollback   bool      `json:"rollback"`
}

// Notify delivers a Notice to every hook that asked for its stage. It is called
// at least once for each stage of a deployment, again after a kill in between;
// from one goroutine at a time, beside the deployment, which does not wait for it
// before its end.
type Notify func(ctx context.Context, n Notice) error

// Window is a time in which no deployment may begin, as people say it: on these
// days, from one time of day until another, which is on the next day if it is
// not later. A rollback may always begin.
type Window struct {
	Days   []string `json:"days,omitempty"` // mon … sun, on which it begins; none: every day
	From   string   `json:"from"`           // 15:04
	To     string   `json:"to"`
	Zone   string   `json:"zone,omitempty"` // of the time zone database; default UTC
	Reason string   `json:"reason,omitempty"`
}
