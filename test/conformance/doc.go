// Package conformance holds the suite of each seam: a backend hands itself to
// it in a test of a few lines. What a suite says is the contract.
package conformance
