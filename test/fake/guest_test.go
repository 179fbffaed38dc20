package fake_test

import (
	"testing"

	"github.com/rebake/rebake/provisioner"
	"github.com/rebake/rebake/test/conformance"
	"github.com/rebake/rebake/test/fake"
)

func TestGuest(t *testing.T) {
	conformance.Guest(t, func(*testing.T) provisioner.Guest { return &fake.Guest{} },
		conformance.GuestOptions{NoShell: true, Dir: func(*testing.T) string { return "/srv/x" }})
}
