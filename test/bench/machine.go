package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
)

// describe says what the numbers were measured on, and finds the accelerator
// that works.
func (b *bench) describe(ctx context.Context) ([]fact, error) {
	packer := output(ctx, "packer", "version")
	if packer == "" {
		return nil, fmt.Errorf("packer does not run here: `make bench` installs it (Debian: apt-get install packer)")
	}
	raw, err := b.ask(ctx, b.work, "doctor")
	if err != nil {
		return nil, err
	}
	var doctor struct {
		Result []struct{ Part, Version, Why string }
	}
	if err := json.Unmarshal(raw, &doctor); err != nil {
		return nil, err
	}
	accel := ""
	for _, f := range doctor.Result {
		if f.Part == "acceleration" {
			accel, b.accel = f.Version, f.Version
		}
	}
	if accel == "tcg" {
		accel = "tcg (emulation: hardware virtualization does not work here)"
	}
	return []fact{
		{"CPU", fmt.Sprintf("%d cores, %s", runtime.NumCPU(), field("/proc/cpuinfo", "model name"))},
		{"memory", gib(field("/proc/meminfo", "MemTotal"))},
		{"kernel", output(ctx, "uname", "-sr") + ", " + field("/etc/os-release", "PRETTY_NAME")},
		{"accelerator", accel},
		{"QEMU", firstLine(output(ctx, "qemu-system-x86_64", "--version"))},
		{"rebake", output(ctx, b.rebake, "--version") + ", " + runtime.Version()},
		{"Packer", firstLine(packer) + ", Debian's package, qemu builder built in"},
		{"load at the start", loadAverage()},
	}, nil
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}

// field is the value of a key of a file like /proc/meminfo.
func field(path, key string) string {
	raw, _ := os.ReadFile(path)
	for line := range strings.Lines(string(raw)) {
		k, v, ok := strings.Cut(strings.TrimSpace(line), ":")
		if !ok {
			k, v, ok = strings.Cut(strings.TrimSpace(line), "=")
		}
		if ok && strings.TrimSpace(k) == key {
			return strings.Trim(strings.TrimSpace(v), `"`)
		}
	}
	return "unknown"
}

func gib(kib string) string {
	n, err := strconv.ParseFloat(strings.TrimSuffix(kib, " kB"), 64)
	if err != nil {
		return kib
	}
	return fmt.Sprintf("%.1f GiB", n/(1<<20))
}
