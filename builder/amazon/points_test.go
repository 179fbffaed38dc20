//go:build !e2e

package amazon

// everyPoint: the quick tests kill at half of the calls before the cloud got them,
// and at the other half after; `make e2e-aws` at each in both ways.
const everyPoint = false
