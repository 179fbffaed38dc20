//go:build ignore

// names_gen writes ec2names.txt: where the wire names of EC2 differ from those of
// the SDK's fields. It reads the SDK's own serializers, in the folder given.
//
//	go run names_gen.go "$(go list -f '{{.Dir}}' github.com/aws/aws-sdk-go-v2/service/ec2)"
package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"sort"
	"strings"
)

var (
	function = regexp.MustCompile(`^func awsEc2query_(de)?serialize(Op)?Document(\w+)\(v \*+(?:types\.)?(\w+)[,)]`)
	field    = regexp.MustCompile(`^\tif v\.(\w+) != nil \{|^\tif len\(v\.(\w+)\) > 0 \{`)
	key      = regexp.MustCompile(`object\.(?:Flat)?Key\("(\w+)"\)`)
	element  = regexp.MustCompile(`^\t\tcase strings\.EqualFold\("(\w+)", t\.Name\.Local\):`)
	target   = regexp.MustCompile(`sv\.(\w+)(?: =|,)`)
)

func main() {
	lines := map[string]bool{}
	// request: the field is on the line before the key.
	scan("serializers.go", func(typ, last, line string, _ bool) string {
		if m := field.FindStringSubmatch(line); m != nil {
			return m[1] + m[2]
		}
		if m := key.FindStringSubmatch(line); m != nil && last != "" && m[1] != last {
			lines["> "+typ+"."+last+" "+m[1]] = true
		}
		return last
	})
	// response: the element's name is on the line before the field.
	scan("deserializers.go", func(typ, last, line string, _ bool) string {
		if m := element.FindStringSubmatch(line); m != nil {
			return m[1]
		}
		if m := target.FindStringSubmatch(line); m != nil && last != "" {
			if !strings.EqualFold(m[1], last) {
				lines["< "+typ+"."+m[1]+" "+last] = true
			}
			return ""
		}
		return last
	})
	var out []string
	for l := range lines {
		out = append(out, l)
	}
	sort.Strings(out)
	if err := os.WriteFile("ec2names.txt", []byte(strings.Join(out, "\n")+"\n"), 0o644); err != nil {
		panic(err)
	}
	fmt.Println(len(out), "names")
}

func scan(name string, f func(typ, last, line string, de bool) string) {
	data, err := os.ReadFile(filepath.Join(os.Args[1], name))
	if err != nil {
		panic(err)
	}
	typ, last := "", ""
	for _, line := range strings.Split(string(data), "\n") {
		if strings.HasPrefix(line, "func ") {
			typ, last = "", ""
			if m := function.FindStringSubmatch(line); m != nil {
				typ = m[4]
			}
			continue
		}
		if typ != "" {
			last = f(typ, last, line, false)
		}
	}
}
