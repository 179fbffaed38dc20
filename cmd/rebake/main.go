// Command rebake bakes machine images from a YAML template and replaces running
// fleets with them. This package turns words into structs: one file per group of
// commands, backends.go lists what there is, exit.go maps errors to statuses.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

// version is set by the Makefile.
var version = "dev"

func main() {
	os.Exit(Main())
}

// Main runs the command line of this process and returns its exit status. The
// first interrupt cancels, and clean-up runs; the second ends the process at
// once, and `rebake gc` finds what it left.
func Main() int {
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	sig := make(chan os.Signal, 2)
	signal.Notify(sig, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer signal.Stop(sig)
	go func() {
		<-sig
		cancel(errInterrupted)
		<-sig
		os.Exit(exitInterrupted)
	}()
	return run(ctx, os.Args, stdio{in: os.Stdin, out: os.Stdout, err: os.Stderr})
}
