package statement

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/rebake/rebake/artifact"
)

// BuildType is the meaning of the provenance's parameters: docs/supply-chain.md.
const BuildType = "https://github.com/rebake/rebake/blob/main/docs/supply-chain.md#build-type-v1"

// Provenanced is the predicate of SLSA provenance v1.
// https://slsa.dev/spec/v1.0/provenance
type Provenanced struct {
	BuildDefinition BuildDefinition `json:"buildDefinition"`
	RunDetails      RunDetails      `json:"runDetails"`
}

// BuildDefinition is what was asked for, and what went into it.
type BuildDefinition struct {
	BuildType            string     `json:"buildType"`
	ExternalParameters   External   `json:"externalParameters"`
	InternalParameters   Internal   `json:"internalParameters"`
	ResolvedDependencies []Resource `json:"resolvedDependencies,omitempty"`
}

// External is what a user said: the template, its variables, which build of it.
type External struct {
	Template  Resource          `json:"template"`
	Variables map[string]string `json:"variables,omitempty"` // of a sensitive one, no value
	Secrets   []string          `json:"secrets,omitempty"`   // names of the sensitive ones
	Target    Target            `json:"target"`
}

// Target is the build that was made.
type Target struct {
	Build string `json:"build"`
	Image string `json:"image"` // name:version
}

// Internal is what rebake made of it.
type Internal struct {
	Builder  string          `json:"builder"` // kind
	Steps    []string        `json:"steps,omitempty"`
	SealSkip []string        `json:"sealSkip,omitempty"`
	Inputs   artifact.Digest `json:"inputsDigest,omitempty"`
}

// Resource is in-toto's ResourceDescriptor.
type Resource struct {
	Name        string            `json:"name,omitempty"`
	URI         string            `json:"uri,omitempty"`
	Digest      map[string]string `json:"digest,omitempty"`
	Annotations map[string]any    `json:"annotations,omitempty"`
}

// Of is a resource of a sha256 digest.
func Of(name string, d artifact.Digest) Resource {
	r := Resource{Name: name}
	if d.Validate() == nil {
		r.Digest = map[string]string{"sha256": d.Hex()}
	}
	return r
}

// RunDetails is of one run.
type RunDetails struct {
	Builder    Builder    `json:"builder"`
	Metadata   Metadata   `json:"metadata"`
	Byproducts []Resource `json:"byproducts,omitempty"`
}

// Builder is who is trusted for what the provenance says.
type Builder struct {
	ID      string            `json:"id"`
	Version map[string]string `json:"version,omitempty"`
}

// Metadata says which run it was, and when.
type Metadata struct {
	InvocationID string    `json:"invocationId"`
	StartedOn    time.Time `json:"startedOn"`
	FinishedOn   time.Time `json:"finishedOn"`
}

// Results of a test statement.
const (
	Passed = "PASSED"
	Failed = "FAILED"
	Warned = "WARNED"
)

// Tested is the predicate of a test result.
// https://github.com/in-toto/attestation/blob/main/spec/predicates/test-result.md
type Tested struct {
	Result        string     `json:"result"`
	Configuration []Resource `json:"configuration"`
	PassedTests   []string   `json:"passedTests,omitempty"`
	WarnedTests   []string   `json:"warnedTests,omitempty"`
	FailedTests   []string   `json:"failedTests,omitempty"`
}

// Test is what the tests of an image came to. ok is false for an image that was
// not tested: it has no such statement.
func Test(results []artifact.TestResult, template Resource) (t Tested, ok bool) {
	t = Tested{Result: Passed, Configuration: []Resource{template}}
	for _, r := range results {
		if r.Passed {
			t.PassedTests = append(t.PassedTests, r.Name)
			continue
		}
		t.Result = Failed
		t.FailedTests = append(t.FailedTests, r.Name)
	}
	return t, len(results) > 0
}

// Tests reads the predicate of a test statement.
func (s Statement) Tests() (Tested, error) {
	var t Tested
	if s.PredicateType != TestResult {
		return t, fmt.Errorf("%.100q is no test result", s.PredicateType)
	}
	if err := json.Unmarshal(s.Predicate, &t); err != nil {
		return t, fmt.Errorf("read the test result: %w", err)
	}
	switch t.Result {
	case Passed, Failed, Warned:
	default:
		return t, fmt.Errorf("the test result is %.100q, which is none of PASSED, WARNED, FAILED", t.Result)
	}
	if t.Result == Passed && len(t.FailedTests) > 0 {
		return t, fmt.Errorf("the test result says PASSED and names %d tests that failed", len(t.FailedTests))
	}
	return t, nil
}

// BuiltBy reads the predicate of a provenance statement.
func (s Statement) BuiltBy() (Provenanced, error) {
	var p Provenanced
	if s.PredicateType != Provenance {
		return p, fmt.Errorf("%.100q is no provenance", s.PredicateType)
	}
	if err := json.Unmarshal(s.Predicate, &p); err != nil {
		return p, fmt.Errorf("read the provenance: %w", err)
	}
	if p.BuildDefinition.BuildType == "" || p.RunDetails.Builder.ID == "" {
		return p, fmt.Errorf("the provenance does not say what built the image, and how")
	}
	return p, nil
}
