package haproxy

import (
	"encoding/json"
	"errors"
	"fmt"
	"github.com/rebake/rebake/internal/atomicfile"
	"os"
	"slices"

	"github.com/rebake/rebake/fleet"
)

// members is members.json: what should be behind the router.
type members struct {
	Slots map[fleet.Slot][]*member `json:"slots"`
}

type member struct {
	fleet.Member
	Ready bool `json:"ready"` // takes traffic; otherwise it is drained
}

func (m members) of(s fleet.Slot) []*member { return m.Slots[s] }

func (m members) get(s fleet.Slot, id string) *member {
	for _, x := range m.Slots[s] {
		if x.ID == id {
			return x
		}
	}
	return nil
}

// put adds a member, drained. One with the same address stays as it is.
func (m *members) put(s fleet.Slot, add fleet.Member) {
	if x := m.get(s, add.ID); x == nil {
		m.Slots[s] = append(m.Slots[s], &member{Member: add})
	} else if x.Addr != add.Addr {
		*x = member{Member: add}
	}
}

// clear forgets the named members of a slot, all of them without names.
func (m *members) clear(s fleet.Slot, names []string) {
	m.Slots[s] = slices.DeleteFunc(m.Slots[s], func(one *member) bool { return meant(one.ID, names) })
}

func (r *Router) readMembers() (members, error) {
	m := members{Slots: map[fleet.Slot][]*member{}}
	data, err := os.ReadFile(r.file(membersName))
	if errors.Is(err, os.ErrNotExist) {
		return m, nil
	}
	if err != nil {
		return m, err
	}
	if err := json.Unmarshal(data, &m); err != nil {
		return m, fmt.Errorf("read %s: %w", r.file(membersName), err)
	}
	for s, list := range m.Slots {
		if err := checkSlot(s); err != nil {
			return m, fmt.Errorf("read %s: %w", r.file(membersName), err)
		}
		for _, x := range list {
			if x == nil || !nameRE.MatchString(x.ID) {
				return m, fmt.Errorf("read %s: a member without a name", r.file(membersName))
			}
		}
	}
	if m.Slots == nil {
		m.Slots = map[fleet.Slot][]*member{}
	}
	return m, nil
}

func (r *Router) writeMembers(m members) error {
	data, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	if err := atomicfile.Write(r.file(membersName), append(data, '\n'), 0o600); err != nil {
		return fmt.Errorf("write the router's members: %w", err)
	}
	return nil
}
