package fake_test

import (
	"testing"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/test/conformance"
	"github.com/rebake/rebake/test/fake"
)

func TestStore(t *testing.T) {
	conformance.Store(t, func(*testing.T) artifact.Store { return &fake.Store{} })
}

func TestStoreAttach(t *testing.T) {
	conformance.StoreAttach(t, func(*testing.T) (artifact.Store, func([]byte)) {
		s := &fake.Store{}
		return s, s.Tamper
	})
}
