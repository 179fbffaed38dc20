//go:build e2e

package amazon

const everyPoint = true
