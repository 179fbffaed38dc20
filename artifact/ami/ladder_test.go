package ami

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rebake/rebake/artifact"
)

func TestOneAMIThatMustStayKeepsItsCopies(t *testing.T) {
	ok := Found{State: "available"}
	for name, c := range map[string]struct {
		step   Step
		shared bool
		far    Found  // of the copy; the first one may go
		stays  string // "": both go
	}{
		"nobody uses it":                         {Removed, false, ok, ""},
		"gone already":                           {Removed, false, Found{}, ""},
		"another account's":                      {Removed, false, Found{Foreign: "it is account 1's, and these credentials are account 2's"}, "it is account 1's, and these credentials are account 2's"},
		"disabled before":                        {Removed, false, Found{State: "disabled"}, ""},
		"failed":                                 {Removed, false, Found{State: "failed"}, ""},
		"an instance":                            {Removed, false, Found{State: "available", Uses: []string{"instance i-1 is of it"}}, "instance i-1 is of it"},
		"an instance, before it is deprecated":   {Deprecated, false, Found{State: "available", Uses: []string{"a", "b", "c"}}, "a, and 2 more"},
		"an instance, though others may have it": {Removed, true, Found{State: "available", Uses: []string{"a"}}, "a"},
		"another's tag":                          {Disabled, true, Found{State: "available", Foreign: "it has no tag rebake:digest"}, "it has no tag rebake:digest"},
		"pending":                                {Deprecated, false, Found{State: "pending"}, "it is pending"},
		"shared":                                 {Removed, false, Found{State: "available", Shared: []string{"111122223333"}}, "111122223333 may launch it"},
		"public":                                 {Disabled, false, Found{State: "available", Shared: []string{"all"}}, "everybody may launch it"},
		"shared, and asked for":                  {Removed, true, Found{State: "available", Shared: []string{"111122223333"}}, ""},
		"shared, only deprecated":                {Deprecated, false, Found{State: "available", Shared: []string{"111122223333"}}, ""},
		"protected":                              {Removed, true, Found{State: "available", Protected: "enabled-with-cooldown"}, "it is protected against deregistration (enabled-with-cooldown)"},
		"protected, only disabled":               {Disabled, false, Found{State: "available", Protected: "enabled-with-cooldown"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			w := Wish{AMIs: []Made{{Record: Record{Region: "eu-central-1", AMI: "ami-1"}}, {Record: Record{Region: "us-west-2", AMI: "ami-2"}}}, Step: c.step, Why: "old", Shared: c.shared}
			got := w.judge(map[string]Found{"eu-central-1/ami-1": ok, "us-west-2/ami-2": c.far})
			for _, v := range got {
				if c.stays == "" && (v.Do != c.step || v.Why != "old") || c.stays != "" && (v.Do != "" || v.Why != "ami-2 in us-west-2: "+c.stays) {
					t.Errorf("%s in %s: %q, %s", v.AMI, v.Region, v.Do, v.Why)
				}
			}
			if len(got) != 2 {
				t.Errorf("%d verdicts", len(got))
			}
		})
	}
}

func TestAStepIsTakenWhenAllCopiesTookIt(t *testing.T) {
	at := func(n int) time.Time { return time.Date(2026, 11, n, 0, 0, 0, 0, time.UTC) }
	made := func(steps ...any) (m Made) {
		for i := 0; i < len(steps); i += 2 {
			m.States = append(m.States, State{Step: steps[i].(Step), Time: at(steps[i+1].(int))})
		}
		return m
	}
	for name, c := range map[string]struct {
		all    []Made
		left   int
		taken  map[Step]time.Time
		byHand int
	}{
		"nothing yet":                   {[]Made{made(), made()}, 2, nil, 0},
		"one of two":                    {[]Made{made(Deprecated, 2), made()}, 2, nil, 0},
		"both, the later counts":        {[]Made{made(Deprecated, 2), made(Deprecated, 3)}, 2, map[Step]time.Time{Deprecated: at(3)}, 0},
		"the second gone":               {[]Made{made(Deprecated, 2), made(Removed, 3)}, 1, map[Step]time.Time{Deprecated: at(2)}, 0},
		"one further than the other":    {[]Made{made(Deprecated, 2, Disabled, 5), made(Deprecated, 3)}, 2, map[Step]time.Time{Deprecated: at(3)}, 0},
		"a later step for one before":   {[]Made{made(Disabled, 5)}, 1, map[Step]time.Time{Deprecated: at(5), Disabled: at(5)}, 0},
		"restored":                      {[]Made{made(Disabled, 5, Restored, 6)}, 1, nil, 6},
		"restored, then taken by hand":  {[]Made{made(Disabled, 5, Restored, 6, Removing, 7)}, 1, map[Step]time.Time{Deprecated: at(7), Disabled: at(7), Removing: at(7)}, 0},
		"all gone":                      {[]Made{made(Removing, 2, Removed, 3)}, 0, nil, 0},
		"cut off while it was removed ": {[]Made{made(Deprecated, 1, Removing, 2)}, 1, map[Step]time.Time{Deprecated: at(1), Disabled: at(2), Removing: at(2)}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			left, taken, byHand := Taken(c.all)
			want := c.taken
			if want == nil {
				want = map[Step]time.Time{}
			}
			if d := cmp.Diff(want, taken); d != "" || len(left) != c.left {
				t.Errorf("%d left, taken: %s", len(left), d)
			}
			if c.byHand == 0 != byHand.IsZero() || c.byHand > 0 && !byHand.Equal(at(c.byHand)) {
				t.Errorf("by hand %s", byHand)
			}
		})
	}
}

func TestWhatBecameOfAnAMIIsKeptWithItsImage(t *testing.T) {
	s := openStore(t)
	img := baked(t, s, "1.0.0", someDisk(9))
	ctx, at := t.Context(), time.Now().UTC().Truncate(time.Second)
	for _, r := range []Record{{Region: "eu-central-1", AMI: "ami-1"}, {Region: "us-west-2", AMI: "ami-1"}} {
		if err := Keep(ctx, s, img, r); err != nil {
			t.Fatal(err)
		}
	}
	all, err := All(ctx, s, img)
	if err != nil || len(all) != 2 {
		t.Fatalf("%+v, %v", all, err)
	}
	m := all[1]
	for _, step := range []Step{Deprecated, Removing, Removed} { // all in one second
		if m, err = m.Say(ctx, s, img, State{Step: step, Why: "old", Time: at}); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Retire(ctx, img, "retention: old", at); err != nil { // the image's disk goes, what is said of it stays
		t.Fatal(err)
	}
	all, err = All(ctx, s, img)
	if err != nil || len(all[0].States) != 0 || !all[1].Gone() || len(all[1].States) != 3 || all[1].Last().Serial != 3 {
		t.Errorf("%+v, %v", all, err)
	}
	if _, err := all[0].Say(ctx, s, img, State{Step: Disabled}); err != nil { // also after it
		t.Error(err)
	}
	records, err := Records(ctx, s, img)
	if err != nil || len(records) != 1 || records[0].Region != "eu-central-1" {
		t.Errorf("%+v, %v", records, err)
	}
	if _, err := s.Attach(ctx, img.Digest, artifact.Attachment{Kind: StateKind, Media: "application/json", Created: at}, []byte("{")); err != nil {
		t.Fatal(err)
	}
	if _, err := All(ctx, s, img); err == nil || !strings.Contains(err.Error(), "record sha256:") {
		t.Errorf("a state that nobody understands: %v", err)
	}
}

func TestWhoMayLaunchAnAMI(t *testing.T) {
	const org, unit = "arn:aws:organizations::111122223333:organization/o-abc123", "arn:aws-cn:organizations::111122223333:ou/o-abc123/ou-a-b"
	for who, want := range map[string]bool{"111122223333": true, org: true, unit: true, "all": false, "11112222333": false, "arn:aws:iam::111122223333:root": false, "arn:aws:organizations::111122223333:account/o-a/1": false} {
		if CanShare(who) != want {
			t.Errorf("%s: %v", who, !want)
		}
	}
	if p := permission("111122223333"); *p.UserId != "111122223333" {
		t.Errorf("%+v", p)
	}
	if p := permission(org); p.UserId != nil || p.OrganizationalUnitArn != nil || *p.OrganizationArn != org {
		t.Errorf("%+v", p)
	}
	if p := permission(unit); p.UserId != nil || p.OrganizationArn != nil || *p.OrganizationalUnitArn != unit {
		t.Errorf("%+v", p)
	}
}
