// Command noskip runs `go test -json` and prints what a person wants to read:
// a line for each package, the output of what failed, and the counts. A test
// that was skipped fails the run: a skip is a part that nobody tested.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"sort"
	"strings"
)

type line struct {
	Action, Package, Test, Output string
	Elapsed                       float64
}

// slow is from how many seconds on a test is named though it passed.
const slow = 20

func main() {
	args := os.Args[1:]
	if len(args) > 0 && args[0] == "--" {
		args = args[1:]
	}
	if len(args) == 0 {
		fmt.Fprintln(os.Stderr, "noskip: give a go test -json command")
		os.Exit(2)
	}
	code, err := run(args)
	if err != nil {
		fmt.Fprintln(os.Stderr, "noskip:", err)
	}
	os.Exit(code)
}

func run(args []string) (int, error) {
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return 1, err
	}
	if err := cmd.Start(); err != nil {
		return 1, err
	}
	var passed, failed int
	var skipped []string
	output := map[string][]string{}
	sc := bufio.NewScanner(out)
	sc.Buffer(nil, 16<<20)
	for sc.Scan() {
		var l line
		if json.Unmarshal(sc.Bytes(), &l) != nil {
			fmt.Println(sc.Text())
			continue
		}
		key := l.Package + " " + l.Test
		switch l.Action {
		case "output", "build-output":
			output[key] = append(output[key], l.Output)
		case "pass":
			if l.Test != "" {
				passed++
				if l.Elapsed >= slow && !strings.Contains(l.Test, "/") {
					fmt.Printf("slow  %6.1fs  %s\n", l.Elapsed, key)
				}
			} else {
				fmt.Printf("ok    %6.1fs  %s\n", l.Elapsed, l.Package)
			}
			delete(output, key)
		case "skip":
			if l.Test != "" {
				skipped = append(skipped, key)
			}
		case "fail":
			if l.Test != "" {
				failed++
				fmt.Printf("FAIL  %6.1fs  %s\n", l.Elapsed, key)
			} else {
				fmt.Printf("FAIL  %6.1fs  %s\n", l.Elapsed, l.Package)
			}
			fmt.Print(strings.Join(output[key], ""))
		case "build-fail":
			for k, v := range output {
				if strings.HasPrefix(k, l.Package) || k == " " {
					fmt.Print(strings.Join(v, ""))
				}
			}
		}
	}
	err = cmd.Wait()
	sort.Strings(skipped)
	for _, s := range skipped {
		fmt.Printf("SKIPPED %s: no test may skip\n%s", s, strings.Join(output[s], ""))
	}
	fmt.Printf("%d passed, %d failed, %d skipped\n", passed, failed, len(skipped))
	if err != nil || sc.Err() != nil || len(skipped) > 0 || failed > 0 {
		return 1, sc.Err()
	}
	return 0, nil
}
