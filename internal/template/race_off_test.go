//go:build !race

package template

const slower = 1
