package awsfake

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"reflect"
	"regexp"
	"strings"
	"time"

	"github.com/aws/smithy-go/encoding/cbor"
)

// action is one API call: what it reads and what it does, with the lock held.
type action struct {
	in func() any
	do func(r *region, in any) (any, error)
}

func on[I, O any](f func(*region, *I) (*O, error)) action {
	return action{in: func() any { return new(I) }, do: func(r *region, in any) (any, error) {
		out, err := f(r, in.(*I))
		if err != nil {
			return nil, err
		}
		return out, nil
	}}
}

// refusal is an error of the API.
type refusal struct {
	code, message string
	status        int
}

func (e *refusal) Error() string { return e.code + ": " + e.message }

func refuse(code, format string, args ...any) error {
	return &refusal{code: code, message: fmt.Sprintf(format, args...), status: http.StatusBadRequest}
}

// actions of every service, by "service:Action".
var actions = func() map[string]action {
	all := map[string]action{}
	for service, m := range map[string]map[string]action{
		"ec2": ec2Actions, "autoscaling": asgActions, "elasticloadbalancing": elbActions, "sts": stsActions,
		"cloudwatch": cloudwatchActions, "ssm": ssmActions, "ebs": ebsActions} {
		for name, a := range m {
			all[service+":"+name] = a
		}
	}
	return all
}()

var scope = regexp.MustCompile(`Credential=[^/]*/\d+/([^/]+)/([^/]+)/aws4_request`)

// request is what a call says, before it is done.
type request struct {
	service, region, name string
	protocol              string // ec2, query, json, cbor, rest
	in                    any
	key                   string // the same for the same words
}

func (c *Cloud) ServeHTTP(w http.ResponseWriter, hr *http.Request) {
	began := time.Now()
	body, err := io.ReadAll(hr.Body)
	if err != nil {
		return
	}
	q, err := c.parse(hr, body)
	if err != nil {
		writeRefusal(w, q, err)
		return
	}
	call := Call{Time: c.now(), Region: q.region, Action: q.service + ":" + q.name, In: q.in}
	res, cut, err := c.perform(hr, q, &call)
	var r *refusal
	if errors.As(err, &r) {
		call.Code = r.code
	} else if err != nil {
		call.Code = "InternalFailure"
	}
	call.Lost, call.Elapsed = cut, time.Since(began)
	c.mu.Lock()
	call.N = len(c.journal) + 1
	c.journal = append(c.journal, call)
	c.calls[call.Action]++
	c.mu.Unlock()
	if cut {
		panic(http.ErrAbortHandler) // the connection ends, as one that timed out
	}
	if err != nil {
		writeRefusal(w, q, err)
		return
	}
	if len(res.body) > buffered {
		time.Sleep(2 * time.Millisecond)
	}
	maps.Copy(w.Header(), res.header)
	w.WriteHeader(res.status)
	_, _ = w.Write(res.body)
}

// buffered is how long an answer may be that the SDK's client reads at once. The
// client closes a request's body as soon as the answer begins; if its transport,
// which has sent the body, has not looked for its end by then, that look fails and
// the connection is closed in the middle of a longer answer (smithy-go's
// safeWriteToReadCloser says EOF where it is to say nothing). No network is as quick
// as this server: a longer answer waits a little. On a machine that is very busy it
// may still happen; the SDK's own retries take it for what it is.
const buffered = 3 << 10

// answer is a reply on the wire: it is made while the lock is held.
type answer struct {
	at     time.Time
	status int
	header http.Header
	body   []byte
}

// perform does a call, or what a fault makes of it.
func (c *Cloud) perform(hr *http.Request, q request, call *Call) (res *answer, cut bool, err error) {
	a, ok := actions[call.Action]
	if !ok {
		return nil, false, refuse("InvalidAction", "the fake has no %s", call.Action)
	}
	var fault *Fault
	c.locked(func() {
		if !c.admit(q, call.Action) {
			err = throttled(q.service)
			return
		}
		if fault = c.hit(call); fault != nil && fault.Stale > 0 {
			if last := c.replies[q.key]; last != nil && time.Since(last.at) < c.wall(fault.Stale) {
				res = last
			}
		}
	})
	if err != nil || res != nil {
		return res, false, err
	}
	if fault != nil {
		if fault.Wait > 0 {
			waitFor(hr.Context(), fault.Wait)
		}
		if fault.Code != "" && !fault.After {
			return nil, false, fault.refusal()
		}
	}
	c.locked(func() {
		if err = c.allowed(q, call.Action); err != nil {
			return
		}
		var out any
		if out, err = a.do(c.region(q.region), q.in); err == nil {
			res = encode(q, out)
			if q.protocol != "rest" && strings.HasPrefix(q.name, "Describe") { // what a stale answer may be
				c.replies[q.key] = res
			}
		}
	})
	if res == nil && err == nil {
		return nil, true, nil // closed
	}
	if fault != nil && fault.After {
		if fault.Code != "" {
			return nil, false, fault.refusal()
		}
		return nil, true, nil
	}
	return res, false, err
}

// allowed tells what IAM and DryRun say of a call.
func (c *Cloud) allowed(q request, name string) error {
	dry := false
	if f := reflect.ValueOf(q.in).Elem().FieldByName("DryRun"); q.service == "ec2" && f.IsValid() && !f.IsNil() {
		dry = f.Elem().Bool()
	}
	if c.Deny != nil && c.Deny(name) {
		code := map[string]string{"ec2": "UnauthorizedOperation", "ebs": "AccessDeniedException", "ssm": "AccessDeniedException"}[q.service]
		if code == "" {
			code = "AccessDenied"
		}
		return &refusal{code: code, message: "You are not authorized to perform this operation: " + name, status: http.StatusForbidden}
	}
	if dry {
		return &refusal{code: "DryRunOperation", message: "Request would have succeeded, but DryRun flag is set.", status: http.StatusPreconditionFailed}
	}
	return nil
}

// parse finds service, region and action of a request and reads its input.
func (c *Cloud) parse(hr *http.Request, body []byte) (request, error) {
	q := request{region: "us-east-1", protocol: "query"}
	if m := scope.FindStringSubmatch(hr.Header.Get("Authorization")); m != nil {
		q.region, q.service = m[1], m[2]
	}
	if q.service == "monitoring" {
		q.service = "cloudwatch"
	}
	var fill func(in any) error
	switch {
	case q.service == "ebs":
		q.protocol = "rest"
		q.name, fill = parseEBS(hr, body)
	case hr.Header.Get("Smithy-Protocol") == "rpc-v2-cbor":
		q.protocol = "cbor"
		q.name = hr.URL.Path[strings.LastIndex(hr.URL.Path, "/")+1:]
		fill = func(in any) error {
			if len(body) == 0 {
				return nil
			}
			v, err := cbor.Decode(body)
			if err != nil {
				return refuse("SerializationException", "%v", err)
			}
			return fromTree(fromCBOR(v), reflect.ValueOf(in).Elem())
		}
	case hr.Header.Get("X-Amz-Target") != "":
		q.protocol = "json"
		_, q.name, _ = strings.Cut(hr.Header.Get("X-Amz-Target"), ".")
		fill = func(in any) error {
			var v any
			if err := json.Unmarshal(body, &v); err != nil {
				return refuse("SerializationException", "%v", err)
			}
			return fromTree(v, reflect.ValueOf(in).Elem())
		}
	default:
		form, err := url.ParseQuery(string(body))
		if err != nil {
			return q, refuse("MalformedQueryString", "%v", err)
		}
		q.name = form.Get("Action")
		names := queryNames
		if q.service == "ec2" {
			q.protocol, names = "ec2", ec2Names
		}
		fill = func(in any) error { return fromQuery(formTree(form), reflect.ValueOf(in).Elem(), names) }
	}
	if q.protocol != "rest" {
		sum := sha256.Sum256(append([]byte(q.region+q.service+q.name+"\x00"+hr.URL.RequestURI()+"\x00"), body...))
		q.key = hex.EncodeToString(sum[:])
	}
	a, ok := actions[q.service+":"+q.name]
	if !ok {
		return q, refuse("InvalidAction", "the fake has no action %q of %q", q.name, q.service)
	}
	q.in = a.in()
	return q, fill(q.in)
}

func requestID() string { return fmt.Sprintf("req-%d", time.Now().UnixNano()) }

// encode puts one of the SDK's outputs on the wire.
func encode(q request, out any) *answer {
	a := &answer{at: time.Now(), status: http.StatusOK, header: http.Header{}}
	id := requestID()
	a.header.Set("X-Amzn-Requestid", id)
	v := reflect.ValueOf(out).Elem()
	switch q.protocol {
	case "rest":
		encodeEBS(a, out)
	case "json":
		a.header.Set("Content-Type", "application/x-amz-json-1.1")
		a.body, _ = json.Marshal(toTree(v))
	case "cbor":
		a.header.Set("Content-Type", "application/cbor")
		a.header.Set("Smithy-Protocol", "rpc-v2-cbor")
		a.body = cbor.Encode(toCBOR(v))
	default:
		var b strings.Builder
		b.WriteString(`<?xml version="1.0" encoding="UTF-8"?>` + "\n<" + q.name + "Response>")
		if q.protocol == "ec2" {
			b.WriteString("<requestId>" + id + "</requestId>")
			toXML(&b, v, ec2Names)
			if v.NumField() <= 2 { // only the metadata: EC2 says true
				b.WriteString("<return>true</return>")
			}
		} else {
			writeXML(&b, q.name+"Result", v, queryNames)
			b.WriteString("<ResponseMetadata><RequestId>" + id + "</RequestId></ResponseMetadata>")
		}
		b.WriteString("</" + q.name + "Response>")
		a.header.Set("Content-Type", "text/xml")
		a.body = []byte(b.String())
	}
	return a
}

func writeRefusal(w http.ResponseWriter, q request, err error) {
	r := &refusal{code: "InternalFailure", message: err.Error(), status: http.StatusInternalServerError}
	errors.As(err, &r)
	id := requestID()
	w.Header().Set("X-Amzn-Requestid", id)
	switch q.protocol {
	case "json", "rest":
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("X-Amzn-Errortype", r.code)
		w.WriteHeader(r.status)
		_ = json.NewEncoder(w).Encode(map[string]string{"__type": r.code, "message": r.message, "Message": r.message})
	case "cbor":
		w.Header().Set("Content-Type", "application/cbor")
		w.Header().Set("Smithy-Protocol", "rpc-v2-cbor")
		w.Header().Set("X-Amzn-Query-Error", r.code+";Sender")
		w.WriteHeader(r.status)
		_, _ = w.Write(cbor.Encode(cbor.Map{"__type": cbor.String(r.code), "message": cbor.String(r.message)}))
	default:
		var b strings.Builder
		w.Header().Set("Content-Type", "text/xml")
		w.WriteHeader(r.status)
		if q.protocol == "ec2" {
			b.WriteString("<Response><Errors>")
			writeXML(&b, "Error", reflect.ValueOf(struct{ Code, Message string }{r.code, r.message}), queryNames)
			b.WriteString("</Errors><RequestID>" + id + "</RequestID></Response>")
		} else {
			b.WriteString("<ErrorResponse>")
			writeXML(&b, "Error", reflect.ValueOf(struct{ Type, Code, Message string }{"Sender", r.code, r.message}), queryNames)
			b.WriteString("<RequestId>" + id + "</RequestId></ErrorResponse>")
		}
		_, _ = io.WriteString(w, b.String())
	}
}
