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
		Name: "fleet", Usage: "what runs, and what ran: ls, status, heal, logs, ssh, destroy, history, why",
		Subcommands: []*cli.Command{
			{Name: "ls", Usage: "list fleets", Description: help("One line for each fleet.", "rebake fleet ls"), Action: with(fleetLs)},
			{Name: "status", Usage: "instances, health and traffic of a fleet", ArgsUsage: "FLEET",
				Flags: []cli.Flag{
					&cli.BoolFlag{Name: "drift", Usage: "ask each instance over SSH what was changed in it since it booted"},
					&cli.BoolFlag{Name: "fail-on-drift", Usage: "the same, and exit status 1 unless every instance is as it was deployed"}},
				Description: help("Asks the pool and the router, not the memory of rebake, and says if the image that runs, or that a rollback\nwould go to at once, was revoked. With --drift each instance too, all at once:\nwhich files and packages were changed since its boot (docs/drift.md), and whether it runs the image\nthat it should. For cron: --fail-on-drift also fails where one is dead, or cannot be asked.",
					"rebake fleet status web\nrebake fleet status web --drift\nrebake --output json fleet status web --fail-on-drift"), Action: with(fleetStatus)},
			{Name: "heal", Usage: "replace dead, changed or named instances with fresh ones of the same image", ArgsUsage: "FLEET",
				Flags: []cli.Flag{
					&cli.BoolFlag{Name: "drifted", Usage: "those too that were changed since they booted"},
					&cli.StringFlag{Name: "instance", Usage: "`ID` of one to replace, whatever its state"},
					&cli.BoolFlag{Name: "yes", Usage: "do not ask before a live instance is replaced"}},
				Description: help("Starts dead and missing instances anew. Live ones go one at a time: drained, ended, started fresh,\nlet in once they are healthy; never so that fewer than min_healthy serve (a temporary instance helps\nout where needed). Stops at the first fresh one that may not serve. Refused while a deployment is\nunfinished.",
					"rebake fleet heal web\nrebake fleet heal web --drifted --yes\nrebake fleet heal web --instance web-blue-4f3a1c-1", "4 the fleet's deployment is blocked", "5 locked by another operator", "6 the fleet's deployment is paused"), Action: with(fleetHeal)},
			{Name: "logs", Usage: "an instance's serial console", ArgsUsage: "FLEET INSTANCE",
				Flags:       []cli.Flag{&cli.IntFlag{Name: "bytes", Usage: "the last `N` bytes", Value: 1 << 16}},
				Description: help("Prints the end of the console.", "rebake fleet logs web web-blue-4f3a1c-1"), Action: with(fleetLogs)},
			{Name: "ssh", Usage: "a shell, or a command, in an instance", ArgsUsage: "FLEET INSTANCE [-- COMMAND…]",
				Description: help("Logs in with the fleet's own key, the host key pinned.", "rebake fleet ssh web web-blue-4f3a1c-1 -- uptime"), Action: with(fleetSSH)},
			{Name: "destroy", Usage: "end a fleet with all its instances", ArgsUsage: "FLEET",
				Flags:       []cli.Flag{&cli.BoolFlag{Name: "yes", Usage: "do not ask"}},
				Description: help("Stops the router and every instance; images stay in the store.", "rebake fleet destroy web --yes", "5 locked by another operator"), Action: with(fleetDestroy)},
			{Name: "history", Usage: "every deployment of a fleet: when, who, what came of it", ArgsUsage: "FLEET",
				Flags:       []cli.Flag{&cli.IntFlag{Name: "limit", Usage: "the newest `N`; 0 is all", Value: 20}},
				Description: help("One line each, the newest first, from the fleet's journal: who, from which image to which, what came\nof it, how long until it was promoted and until nothing was left to do, the steps of the traffic.\nWith --output json everything that is known of each.", "rebake fleet history web --limit 5"), Action: with(fleetHistory)},
			{Name: "why", Usage: "from an instance back to its image, bake, template and commit", ArgsUsage: "INSTANCE",
				Description: help("Tells which deployment made an instance, by whom, and follows its image: the bake, the template, the\ngit commit, and the images that it was made from. Of an instance that is gone too, by its name.", "rebake fleet why web-blue-4f3a1c-1"), Action: with(fleetWhy)},
		},
	}
}

func fleetLs(s *session) error {
	places, away := pipeline.Fleets(s.ctx, s.Env)
	if len(places) == 0 && away != nil {
		return away
	}
	if len(places) == 0 {
		return s.result([]string{}, "no fleets yet: `rebake init web && rebake up web.yaml` makes one")
	}
	rows := [][]string{{"FLEET", "IMAGE", "ADDRESS", "STATE", "INSTANCES"}}
	all := map[string]fleet.Status{}
	for _, p := range places {
		n := p.Name
		if _, twice := all[n]; twice {
			n = p.State + "/" + n
		}
		d, err := pipeline.FleetAt(s.ctx, s.Env, p)
		var st fleet.Status
		if err == nil {
			st, err = d.Status(s.ctx)
		}
		if err != nil {
			rows = append(rows, []string{n, "", "", "error: " + err.Error(), ""})
			continue
		}
		all[n] = st
		word := stateWord(st)
		if r, _ := s.runsRevoked(d.Config.Store, st); st.Current != nil && r[currentImage(st)] != "" {
			word += ", revoked"
		}
		rows = append(rows, []string{n, currentImage(st), st.Router.Listen, word, instanceCount(st)})
	}
	return errors.Join(away, s.result(all, ui.Table(rows)))
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
	revoked, lines := s.runsRevoked(d.Config.Store, st)
	text := describeStatus(d.Config.Name, st) + lines
	if !s.c.Bool("drift") && !s.c.Bool("fail-on-drift") {
		return s.result(struct {
			fleet.Status
			Revoked map[string]string `json:"revoked,omitempty"`
		}{st, revoked}, text)
	}
	drifted, err := pipeline.Drift(s.ctx, d)
	if err != nil {
		return err
	}
	err = s.result(struct {
		fleet.Status
		Revoked map[string]string   `json:"revoked,omitempty"`
		Drift   pipeline.FleetDrift `json:"drift"`
	}{st, revoked, drifted}, text+"\n"+describeDrift(d.Config.Name, drifted))
	if s.c.Bool("fail-on-drift") && !drifted.Good() {
		err = errors.Join(err, driftError(d.Config.Name, drifted))
	}
	return err
}

func describeStatus(name string, st fleet.Status) string {
	var b strings.Builder
	fmt.Fprintf(&b, "fleet %s at %s: %s, %s\n", name, st.Router.Listen, currentImage(st), stateWord(st))
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
	return b.String() + ui.Table(rows)
}

// instanceArgs are a fleet and one of its instances.
func (s *session) instanceArgs() (*fleet.Deployer, string, []string, error) {
	if s.c.NArg() < 2 {
		return nil, "", nil, usagef("`rebake fleet status FLEET` lists the instances", "%s takes a fleet and an instance; got %d arguments", s.c.Command.HelpName, s.c.NArg())
	}
	d, err := pipeline.Fleet(s.ctx, s.Env, s.c.Args().First())
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
	if err := pipeline.Destroy(s.ctx, s.Env, d); err != nil {
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
