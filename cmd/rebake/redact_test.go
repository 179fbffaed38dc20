package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/rebake/rebake/internal/event"
	"github.com/urfave/cli/v2"
)

func TestNoSecretIsInWhatACommandPrints(t *testing.T) {
	t.Setenv("REBAKE_HOME", t.TempDir())
	boom := errors.New("boom")
	for _, mode := range []string{"plain", "json"} {
		var out, errs bytes.Buffer
		app := &cli.App{
			Writer: &out, ErrWriter: &errs, ExitErrHandler: func(*cli.Context, error) {},
			Flags: []cli.Flag{&cli.StringFlag{Name: "output", Value: mode}, &cli.BoolFlag{Name: "debug"}},
			Action: with(func(s *session) error {
				s.red.Add("hunter2-hunter2")
				event.Infof(s.ctx, "told hunter2-hunter2")
				return fmt.Errorf("the guest said hunter2-hunter2: %w", boom)
			}),
		}
		err := app.RunContext(context.Background(), []string{"rebake"})
		if !errors.Is(err, boom) {
			t.Fatal(err)
		}
		printError(&errs, err)
		if all := out.String() + errs.String(); strings.Contains(all, "hunter2") || strings.Count(all, "‹redacted›") != 2 {
			t.Errorf("%s: %s", mode, all)
		}
	}
}
