//go:build race

package template

// slower is how much longer things may take under the race detector, on a busy machine.
const slower = 20
