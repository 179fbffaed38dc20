package fake

import "github.com/rebake/rebake/internal/model"

// The fleet's parts in memory are internal/model's: `rebake deploy --rehearse`
// plays on the same ones that the tests do.
type (
	Pool      = model.Pool
	Router    = model.Router
	Behaviour = model.Behaviour
)
