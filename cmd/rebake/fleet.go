package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/rebake/rebake/fleet"
	"github.com/rebake/rebake/internal/pipeline"
	"github.com/rebake/rebake/internal/ui"
	"github.com/urfave/cli/v2"
)

func fleetCommand() *cli.Command {
	return &cli.Command{
		Name: "fleet", Usage: "what runs: ls, status, logs, ssh, destroy",
		Subcommands: []*cli.Command{
			{Name: "ls", Usage: "list fleets", Description: help("One line for each fleet.", "rebake fleet ls"), Action: with(fleetLs)},
			{Name: "status", Usage: "instances, health and traffic of a fleet", ArgsUsage: "FLEET",
				Description: help("Asks the pool and the router, not the memory of rebake.", "rebake fleet status web"), Action: with(fleetStatus)},
			{Name: "logs", Usage: "an instance's serial console", ArgsUsage: "FLEET INSTANCE",
				Flags:       []cli.Flag{&cli.IntFlag{Name: "bytes", Usage: "the last `N` bytes", Value: 1 << 16}},
				Description: help("Prints the end of the console.", "rebake fleet logs web web-blue-4f3a1c-1"), Action: with(fleetLogs)},
			{Name: "ssh", Usage: "a shell, or a command, in an instance", ArgsUsage: "FLEET INSTANCE [-- COMMAND…]",
				Description: help("Logs in with the fleet's own key, the host key pinned.", "rebake fleet ssh web web-blue-4f3a1c-1 -- uptime"), Action: with(fleetSSH)},
			{Name: "destroy", Usage: "end a fleet with all its instances", ArgsUsage: "FLEET",
				Flags:       []cli.Flag{&cli.BoolFlag{Name: "yes", Usage: "do not ask"}},
				Description: help("Stops the router and every instance; images stay in the store.", "rebake fleet destroy web --yes", "5 locked by another operator"), Action: with(fleetDestroy)},
		},
	}
}

func fleetLs(s *session) error {
	names, err := pipeline.FleetNames(s.Env)
	if err != nil {
		return err
	}
	if len(names) == 0 {
		return s.result([]string{}, "no fleets yet: `rebake init web && rebake up web.yaml` makes one")
	}
	rows := [][]string{{"FLEET", "IMAGE", "ADDRESS", "STATE", "INSTANCES"}}
	all := map[string]fleet.Status{}
	for _, n := range names {
		d, err := pipeline.Fleet(s.Env, n)
		if err != nil {
			return err
		}
		st, err := d.Status(s.ctx)
		if err != nil {
			rows = append(rows, []string{n, "", "", "error: " + err.Error(), ""})
			continue
		}
		all[n] = st
		rows = append(rows, []string{n, currentImage(st), st.Router.Listen, stateWord(st), instanceCount(st)})
	}
	return s.result(all, ui.Table(rows))
}

func currentImage(st fleet.Status) string {
	if st.Current == nil {
		return "none"
	}
	return st.Current.Spec.Image.Name + ":" + st.Current.Spec.Image.Version
}

func stateWord(st fleet.Status) string {
	switch {
	case !st.Router.Up:
		return "router down"
	case st.Unfinished != nil:
		return "deployment " + string(st.Unfinished.State)
	case st.Kept != nil:
		return "old slot kept until " + st.KeptUntil.Local().Format("15:04:05")
	}
	return "steady"
}

func instanceCount(st fleet.Status) string {
	running, all := 0, 0
	for _, g := range st.Groups {
		for _, i := range g.Instances {
			all++
			if i.Running {
				running++
			}
		}
	}
	return fmt.Sprintf("%d of %d running", running, all)
}

func fleetStatus(s *session) error {
	d, err := s.fleetArg()
	if err != nil {
		return err
	}
	st, err := d.Status(s.ctx)
	if err != nil {
		return err
	}
	var b strings.Builder
	fmt.Fprintf(&b, "fleet %s at %s: %s, %s\n", d.Config.Name, st.Router.Listen, currentImage(st), stateWord(st))
	rows := [][]string{{"INSTANCE", "SLOT", "TRAFFIC", "RUNNING", "HEALTH", "ADMIN", "IN FLIGHT", "REQUESTS", "5XX", "IMAGE"}}
	for _, g := range st.Groups {
		for _, i := range g.Instances {
			row := []string{i.ID, string(g.ID.Slot), fmt.Sprintf("%.1f %%", float64(st.Router.Weights[g.ID.Slot])/10), fmt.Sprint(i.Running), "-", "-", "-", "-", "-", short(g.Image)}
			for _, m := range st.Router.Members[g.ID.Slot] {
				if m.ID == i.ID {
					row[4], row[5], row[6], row[7], row[8] = m.Check, m.Admin, fmt.Sprint(m.InFlight), fmt.Sprint(m.Requests), fmt.Sprint(m.Errors5x)
				}
			}
			rows = append(rows, row)
		}
	}
	return s.result(st, b.String()+ui.Table(rows))
}

// instanceArgs are a fleet and one of its instances.
func (s *session) instanceArgs() (*fleet.Deployer, string, []string, error) {
	if s.c.NArg() < 2 {
		return nil, "", nil, usagef("`rebake fleet status FLEET` lists the instances", "%s takes a fleet and an instance; got %d arguments", s.c.Command.HelpName, s.c.NArg())
	}
	d, err := pipeline.Fleet(s.Env, s.c.Args().First())
	return d, s.c.Args().Get(1), s.c.Args().Slice()[2:], err
}

func fleetLogs(s *session) error {
	d, inst, _, err := s.instanceArgs()
	if err != nil {
		return err
	}
	return pipeline.Copy(s.ctx, s.c.App.Writer, d.Pool, inst, s.c.Int("bytes"))
}

func fleetDestroy(s *session) error {
	d, err := s.fleetArg()
	if err != nil {
		return err
	}
	if !s.c.Bool("yes") {
		if err := s.confirm(fmt.Sprintf("destroy fleet %s with all its instances?", d.Config.Name)); err != nil {
			return err
		}
	}
	if err := d.Destroy(s.ctx); err != nil {
		return err
	}
	return s.result(map[string]string{"destroyed": d.Config.Name}, "destroyed fleet "+d.Config.Name)
}

// confirm asks a person; without a terminal it refuses.
func (s *session) confirm(question string) error {
	if !interactive(s.c.App.Reader) {
		return usagef("--yes says so without a question", "%s is not asked without a terminal", s.c.Command.HelpName)
	}
	fmt.Fprintf(s.c.App.ErrWriter, "%s [y/N] ", question)
	var answer string
	if _, err := fmt.Fscanln(s.c.App.Reader, &answer); err != nil || !strings.HasPrefix(strings.ToLower(answer), "y") {
		return errors.New("not confirmed: nothing was done")
	}
	return nil
}
