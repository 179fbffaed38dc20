//go:build !e2e

package amazon

// everyPoint: the quick tests kill at every fourth call before the cloud gets it,
// and at others after; `make e2e-aws` at each in both ways.
const everyPoint = false
