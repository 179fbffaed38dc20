package access

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"path"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// cloud answers each action as it is told, a dry run with success by default, and
// notes what was asked without DryRun.
func cloud(t *testing.T, refuse map[string]string, clock time.Duration) (wet *[]string) {
	t.Helper()
	wet = new([]string)
	var mu sync.Mutex
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Date", time.Now().Add(clock).UTC().Format(http.TimeFormat))
		if rest, ok := strings.CutPrefix(r.URL.Path, "/snapshots/"); ok {
			code, status := "ResourceNotFoundException", http.StatusNotFound
			if strings.HasSuffix(rest, "/blocks") && refuse["ListSnapshotBlocks"] != "" {
				code, status = refuse["ListSnapshotBlocks"], http.StatusForbidden
			}
			w.Header().Set("X-Amzn-Errortype", code)
			w.WriteHeader(status)
			fmt.Fprint(w, `{"Message":"no"}`)
			return
		}
		if path.Base(path.Dir(r.URL.Path)) == "operation" { // CloudWatch: a map of nothing, in CBOR
			mu.Lock()
			*wet = append(*wet, path.Base(r.URL.Path))
			mu.Unlock()
			w.Header().Set("Smithy-Protocol", "rpc-v2-cbor")
			fmt.Fprint(w, "\xa0")
			return
		}
		if key, ok := strings.CutPrefix(r.URL.Path, "/bucket"); ok { // S3
			code, status := "NoSuchKey", http.StatusNotFound
			if strings.Trim(key, "/") == "" {
				code, status = "AccessDenied", http.StatusForbidden
			}
			w.WriteHeader(status)
			fmt.Fprintf(w, `<Error><Code>%s</Code><Message>no</Message></Error>`, code)
			return
		}
		action := r.FormValue("Action")
		code, bad := refuse[action]
		switch {
		case action == "GetCallerIdentity" && !bad:
			fmt.Fprint(w, `<GetCallerIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><GetCallerIdentityResult><Arn>arn:aws:iam::123456789012:user/baker</Arn><UserId>A</UserId><Account>123456789012</Account></GetCallerIdentityResult></GetCallerIdentityResponse>`)
			return
		case r.FormValue("DryRun") == "true" && !bad:
			code = "DryRunOperation"
		case r.FormValue("DryRun") != "true":
			mu.Lock()
			*wet = append(*wet, action)
			mu.Unlock()
			if !bad {
				fmt.Fprintf(w, `<%[1]sResponse xmlns="http://autoscaling.amazonaws.com/doc/2011-01-01/"><%[1]sResult/></%[1]sResponse>`, action)
				return
			}
			w.WriteHeader(http.StatusForbidden)
			if code == "<html>" {
				fmt.Fprint(w, "<html>a proxy<br></html>")
				return
			}
			fmt.Fprintf(w, `<ErrorResponse><Error><Type>Sender</Type><Code>%s</Code><Message>not you</Message></Error></ErrorResponse>`, code)
			return
		}
		w.WriteHeader(http.StatusPreconditionFailed)
		fmt.Fprintf(w, `<Response><Errors><Error><Code>%s</Code><Message>not you</Message></Error></Errors><RequestID>1</RequestID></Response>`, code)
	}))
	t.Cleanup(srv.Close)
	for k, v := range map[string]string{"AWS_ENDPOINT_URL": srv.URL, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_SESSION_TOKEN": "",
		"AWS_REGION": "eu-central-1", "AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": "/dev/null", "AWS_SHARED_CREDENTIALS_FILE": "/dev/null"} {
		t.Setenv(k, v)
	}
	return wet
}

func TestPermissionsAreAskedForWithoutUsingThem(t *testing.T) {
	wet := cloud(t, map[string]string{"DeregisterImage": "UnauthorizedOperation", "DeleteSnapshot": "InvalidSnapshot.NotFound", "ListSnapshotBlocks": "AccessDeniedException", "DescribePolicies": "AccessDenied", "DescribeScheduledActions": "<html>"}, -time.Minute)
	s, err := Open(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	who, err := s.Who(t.Context())
	if err != nil || who.Account != "123456789012" || who.ARN != "arn:aws:iam::123456789012:user/baker" || who.Region != "eu-central-1" || who.Endpoint == "" || who.Source != "EnvConfigCredentials" {
		t.Errorf("%+v, %v", who, err)
	}
	if d := who.Skew + time.Minute; d.Abs() > 3*time.Second {
		t.Errorf("the clock is ahead by %s", -who.Skew)
	}
	if answers, err := s.Ask(t.Context(), []string{"s3:ListBucket"}); err != nil || answers[0].State != Untold { // of which bucket?
		t.Errorf("%+v, %v", answers, err)
	}
	s.In("bucket", "team/")
	answers, err := s.Ask(t.Context(), append(Probed(), "kms:CreateGrant"))
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]State{"ec2:DeregisterImage": Missing, "ec2:DeleteSnapshot": Untold, "ebs:ListSnapshotBlocks": Missing, "autoscaling:DescribePolicies": Missing, "kms:CreateGrant": Untold, "s3:ListBucket": Missing, "autoscaling:DescribeScheduledActions": Untold}
	for i, a := range answers {
		w := want[a.Action]
		if w == "" {
			w = Granted
		}
		if a.State != w || a.State != Granted && a.Note == "" {
			t.Errorf("%+v, want %s", a, w)
		}
		if i > 0 && i < len(answers)-1 && answers[i-1].Action >= a.Action {
			t.Errorf("%s after %s", a.Action, answers[i-1].Action)
		}
	}
	for _, action := range *wet { // what has no dry run is only read
		if !strings.HasPrefix(action, "Describe") && !strings.HasPrefix(action, "Get") {
			t.Errorf("%s was called for real", action)
		}
	}
	if !slices.Contains(*wet, "DescribeAutoScalingGroups") {
		t.Errorf("nothing was read: %q", *wet)
	}
}

func TestCredentialsThatAWSDoesNotTake(t *testing.T) {
	cloud(t, map[string]string{"GetCallerIdentity": "InvalidClientTokenId", "DescribeImages": "AuthFailure"}, 0)
	s, err := Open(t.Context(), "ap-east-1")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Who(t.Context()); err == nil || !strings.Contains(err.Error(), "InvalidClientTokenId") {
		t.Errorf("%v", err)
	}
	if _, err := s.Ask(t.Context(), []string{"ec2:DescribeImages"}); err == nil || !strings.Contains(err.Error(), "is the region enabled?") {
		t.Errorf("%v", err)
	}
}

func TestEndpointsAreTold(t *testing.T) {
	for want, environ := range map[string][]string{
		"":                   {"PATH=/bin", "AWS_ENDPOINT_URL="},
		"http://a":           {"AWS_ENDPOINT_URL=http://a"},
		"http://a,s3 http:b": {"AWS_ENDPOINT_URL_S3=http:b", "AWS_ENDPOINT_URL=http://a"},
	} {
		if got := endpoints(environ); got != want {
			t.Errorf("%q: %q, want %q", environ, got, want)
		}
	}
}
