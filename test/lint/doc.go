// Package lint holds the test of the layer rules: each rule of .golangci.yml
// catches what it is there for.
package lint
