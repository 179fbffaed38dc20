package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/rebake/rebake/internal/pipeline"
	"github.com/rebake/rebake/internal/ui"
	"github.com/urfave/cli/v2"
)

// asker puts questions on the terminal; nil where there is none.
func asker(c *cli.Context, view ui.UI) func(context.Context, string, []string) (string, error) {
	if !interactive(c.App.Reader) {
		return nil
	}
	lines := make(chan string)
	started := false
	return func(ctx context.Context, question string, choices []string) (string, error) {
		if !started {
			started = true
			go func() {
				sc := bufio.NewScanner(c.App.Reader)
				for sc.Scan() {
					lines <- sc.Text()
				}
				close(lines)
			}()
		}
		if h, ok := view.(ui.Holder); ok {
			defer h.Hold()()
		}
		for {
			fmt.Fprintf(c.App.ErrWriter, "\n%s\n[%s] ", question, strings.Join(choices, " / "))
			select {
			case <-ctx.Done():
				return "", context.Cause(ctx)
			case line, ok := <-lines:
				if !ok {
					return "", fmt.Errorf("no answer: %w", os.ErrClosed)
				}
				for _, choice := range choices {
					if l := strings.ToLower(strings.TrimSpace(line)); l != "" && strings.HasPrefix(choice, l) {
						return choice, nil
					}
				}
			}
		}
	}
}

func shellCommand() *cli.Command {
	return &cli.Command{
		Name: "shell", Usage: "enter the machine of a build that waits for you", ArgsUsage: "[BUILD]",
		Description: help("A build waits with --on-failure keep or ask, and at a breakpoint. BUILD is needed if several do.\nThe key that this uses is taken out of the guest before the build goes on.",
			"rebake shell"),
		Action: with(func(s *session) error {
			ways, err := pipeline.Ways(s.Env)
			if err != nil {
				return err
			}
			var ids []string
			for _, w := range ways {
				ids = append(ids, w.ID)
				if id := s.c.Args().First(); w.ID == id || id == "" && len(ways) == 1 {
					c, err := pipeline.Enter(s.ctx, w)
					if err != nil {
						return err
					}
					defer c.Close()
					return s.shell(c)
				}
			}
			if len(ids) == 0 {
				return fmt.Errorf("no build waits for you (`rebake build --on-failure ask`, or a breakpoint step)")
			}
			return usagef("builds: "+strings.Join(ids, ", "), "which build?")
		}),
	}
}
