//go:build !linux

package main

import (
	"errors"
	"os"
)

func inNamespace[T any](string, func() (T, error)) (v T, err error) {
	return v, errors.ErrUnsupported
}

func openTun(string) (*os.File, error) { return nil, errors.ErrUnsupported }
