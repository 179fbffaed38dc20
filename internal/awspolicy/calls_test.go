package awspolicy

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/rebake/rebake/artifact/ami/access"
)

// callers are the folders that call AWS, each with the features that it is.
var callers = map[string][]Feature{
	"artifact/ami":   {Publish, Copy, Share, Deprecate, Protect, Retention},
	"builder/amazon": {Bake, Group, SSM, Publish, Copy, Share, Deprecate, Protect},
	"fleet/asg":      {Pool, Refresh, Publish},
	"fleet/alb":      {Router, Adopted, Gates},
	"fleet/s3":       {State},
}

const services = "github.com/aws/aws-sdk-go-v2/service/"

// prefixes are the services whose permissions begin otherwise.
var prefixes = map[string]string{"elasticloadbalancingv2": "elasticloadbalancing"}

// free are calls that need no permission.
var free = map[string]bool{"sts:GetCallerIdentity": true}

var version = regexp.MustCompile(`^v[0-9]+$`)

// callsIn finds every operation of AWS that a folder's code names: each has an input
// of its own, which the code must make, and waiters and paginators take the same.
func callsIn(t *testing.T, name string, src []byte) []string {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), name, src, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	service := map[string]string{} // by what the file calls the package
	for _, i := range file.Imports {
		path, err := strconv.Unquote(i.Path.Value)
		if err != nil {
			t.Fatal(err)
		}
		rest, ok := strings.CutPrefix(path, services)
		if !ok || strings.Contains(rest, "/") && !version.MatchString(rest[strings.LastIndex(rest, "/")+1:]) {
			continue
		}
		as := filepath.Base(rest)
		if i.Name != nil {
			as = i.Name.Name
		}
		service[as] = rest
		if p, ok := prefixes[rest]; ok {
			service[as] = p
		}
	}
	var out []string
	ast.Inspect(file, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.SelectorExpr:
			if pkg, ok := n.X.(*ast.Ident); ok && service[pkg.Name] != "" {
				if op, ok := strings.CutSuffix(n.Sel.Name, "Input"); ok {
					out = append(out, service[pkg.Name]+":"+op)
				}
			}
		case *ast.CallExpr: // client.DescribeThings(ctx, nil) would hide from the above
			if f, ok := n.Fun.(*ast.SelectorExpr); ok && len(service) > 0 && len(n.Args) >= 2 && f.Sel.IsExported() {
				ctx, isCtx := n.Args[0].(*ast.Ident)
				if arg, ok := n.Args[1].(*ast.Ident); ok && arg.Name == "nil" && isCtx && strings.HasSuffix(ctx.Name, "ctx") {
					t.Errorf("%s: %s(ctx, nil): name its input, so that this test sees the call", name, f.Sel.Name)
				}
			}
		}
		return true
	})
	return out
}

// calledBy reads the code of a folder and those below it, without tests.
func calledBy(t *testing.T, dir string) []string {
	t.Helper()
	var out []string
	root := filepath.Join("../..", dir)
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && d.Name() == "access" { // asks about permissions, by names of the table
			return filepath.SkipDir
		}
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		src, err := os.ReadFile(path)
		if err == nil {
			out = append(out, callsIn(t, path, src)...)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// granted are the calls of features.
func granted(features []Feature) map[string]bool {
	out := map[string]bool{}
	for _, f := range features {
		for _, g := range table[f] {
			for _, c := range g.Calls {
				out[c] = true
			}
		}
	}
	return out
}

func TestEveryCallOfAWSIsInTheTable(t *testing.T) {
	called := map[string]bool{} // by whomever
	for dir, features := range callers {
		if _, err := os.Stat(filepath.Join("../..", dir)); err != nil {
			t.Error(err)
			continue
		}
		calls, known := calledBy(t, dir), granted(features)
		if len(calls) < 3 {
			t.Errorf("%s: only %q was found", dir, calls)
		}
		for _, c := range calls {
			called[c] = true
			if !known[c] && !free[c] {
				t.Errorf("%s calls %s, which none of its features %q in table.go has: say which one needs it, on what", dir, c, features)
			}
		}
	}
	for f, grants := range table { // and nothing is asked for that nobody calls
		for _, g := range grants {
			for _, c := range g.Calls {
				if !called[c] {
					t.Errorf("%s: %s is in table.go and nobody calls it", f, c)
				}
			}
		}
	}
}

// The test above is only as good as what it finds.
func TestCallsAreFound(t *testing.T) {
	src := `package p
import (
	"context"
	alb "github.com/aws/aws-sdk-go-v2/service/elasticloadbalancingv2"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"example.com/other"
)
var in *alb.ModifyRuleInput
func f(ctx context.Context, c *ec2.Client) {
	c.DescribeImages(ctx, &ec2.DescribeImagesInput{})
	ec2.NewDescribeInstancesPaginator(c, &ec2.DescribeInstancesInput{})
	_ = types.Image{}
	_ = other.NoInput{}
}`
	got := callsIn(t, "p.go", []byte(src))
	if want := []string{"elasticloadbalancing:ModifyRule", "ec2:DescribeImages", "ec2:DescribeInstances"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

// Whatever can be asked about by a dry run or a read is.
func TestEveryPermissionThatCanBeAskedForIs(t *testing.T) {
	probed := access.Probed()
	n := all()
	for _, a := range n.Actions() {
		service, verb, _ := strings.Cut(a, ":")
		if service == "ec2" && !slices.Contains(probed, a) {
			t.Errorf("%s has a dry run, and artifact/ami/access does not ask for it", a)
		}
		if slices.Contains([]string{"autoscaling", "elasticloadbalancing", "cloudwatch", "s3"}, service) && (strings.HasPrefix(verb, "Describe") || strings.HasPrefix(verb, "Get") || strings.HasPrefix(verb, "List")) && !slices.Contains(probed, a) {
			t.Errorf("%s is a read, and artifact/ami/access does not ask for it", a)
		}
	}
	for _, a := range probed {
		if !slices.Contains(n.Actions(), a) {
			t.Errorf("artifact/ami/access asks for %s, which no feature needs", a)
		}
	}
}
