// Package bucket is an S3 server in memory with one bucket, for tests: it honours
// conditional writes, lists in pages, and can fail, cut answers off and die at
// any call. Its clock is the time package's, so that it lives in a synctest bubble.
package bucket

import (
	"bytes"
	"context"
	"crypto/md5"
	"encoding/hex"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"
)

// Name is the bucket's.
const Name = "states"

// Fault is what becomes of a call.
type Fault int

// The faults. Those without an answer are errors of the connection.
const (
	None  Fault = iota
	Fails       // not done: 500
	Busy        // not done: 503 SlowDown
	Cut         // not done, and no answer
	Lost        // done, and no answer
)

// ErrCut is what a client sees of a call without an answer.
var ErrCut = errors.New("connection reset by peer")

type object struct {
	body        []byte
	etag, nonce string
	made        time.Time
}

// Server is safe for concurrent use. Its fields are set before it is used.
type Server struct {
	Blind  bool // conditions are ignored
	Denied bool // every call is 403
	Page   int  // keys in an answer to a list; 0: 1000

	mu      sync.Mutex
	objects map[string]object
	calls   []string
}

// Client is an operator's. fault says of each call what becomes of it; nil: it works.
func (s *Server) Client(fault func(call string) Fault) *awss3.Client {
	keys := aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
		return aws.Credentials{AccessKeyID: "test", SecretAccessKey: "test"}, nil
	})
	return awss3.New(awss3.Options{Region: "eu-central-1", BaseEndpoint: aws.String("http://bucket.test"), UsePathStyle: true,
		Credentials: keys, HTTPClient: client{s, fault}, DisableLogOutputChecksumValidationSkipped: true})
}

// client is a connection without a network.
type client struct {
	s     *Server
	fault func(string) Fault
}

func (c client) Do(r *http.Request) (*http.Response, error) {
	if err := r.Context().Err(); err != nil {
		return nil, err
	}
	as := None
	if c.fault != nil {
		as = c.fault(name(r))
	}
	switch as {
	case Fails, Busy:
		w := httptest.NewRecorder()
		fail(w, map[Fault]int{Fails: 500, Busy: 503}[as], map[Fault]string{Fails: "InternalError", Busy: "SlowDown"}[as])
		return w.Result(), nil
	case Cut:
		return nil, ErrCut
	}
	w := httptest.NewRecorder()
	c.s.ServeHTTP(w, r)
	if as == Lost {
		return nil, ErrCut
	}
	return w.Result(), nil
}

// name is a call as tests name it: its method and what it is about.
func name(r *http.Request) string {
	if q := r.URL.Query(); q.Has("list-type") {
		return "LIST " + q.Get("prefix")
	}
	return r.Method + " " + key(r)
}

func key(r *http.Request) string { return strings.TrimPrefix(r.URL.Path, "/"+Name+"/") }

// Calls are the names of all calls so far.
func (s *Server) Calls() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.calls)
}

// Objects are the contents of the bucket by key.
func (s *Server) Objects() map[string]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := map[string]string{}
	for k, o := range s.objects {
		out[k] = string(o.body)
	}
	return out
}

// Set puts an object there, as somebody with another tool would; nil removes it.
func (s *Server) Set(key string, body []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if body == nil {
		delete(s.objects, key)
		return
	}
	s.set(key, body, "")
}

func (s *Server) set(key string, body []byte, nonce string) object {
	sum := md5.Sum(body)
	o := object{body, `"` + hex.EncodeToString(sum[:]) + `"`, nonce, time.Now()}
	if s.objects == nil {
		s.objects = map[string]object{}
	}
	s.objects[key] = o
	return o
}

// ServeHTTP is the protocol, path-style.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls = append(s.calls, name(r))
	w.Header().Set("Date", time.Now().UTC().Format(http.TimeFormat))
	switch bucket, _, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/"); {
	case s.Denied:
		fail(w, http.StatusForbidden, "AccessDenied")
	case bucket != Name:
		fail(w, http.StatusNotFound, "NoSuchBucket")
	case r.URL.Query().Has("list-type"):
		s.list(w, r)
	case r.Method == http.MethodPut:
		s.put(w, r)
	case r.Method == http.MethodGet:
		s.get(w, r)
	case r.Method == http.MethodPost && r.URL.Query().Has("delete"):
		s.remove(w, r)
	default:
		fail(w, http.StatusNotImplemented, "NotImplemented")
	}
}

func fail(w http.ResponseWriter, status int, code string) {
	w.WriteHeader(status)
	fmt.Fprintf(w, "<Error><Code>%s</Code><Message>as the test wants it</Message></Error>", code)
}

func (s *Server) put(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil || strings.HasPrefix(r.Header.Get("X-Amz-Content-Sha256"), "STREAMING") {
		fail(w, http.StatusNotImplemented, "NotImplemented")
		return
	}
	is, there := s.objects[key(r)]
	match, none := r.Header.Get("If-Match"), r.Header.Get("If-None-Match")
	switch {
	case s.Blind:
	case match != "" && !there:
		fail(w, http.StatusNotFound, "NoSuchKey")
		return
	case match != "" && is.etag != match, none == "*" && there:
		fail(w, http.StatusPreconditionFailed, "PreconditionFailed")
		return
	}
	w.Header().Set("ETag", s.set(key(r), body, r.Header.Get("X-Amz-Meta-Nonce")).etag)
}

func (s *Server) get(w http.ResponseWriter, r *http.Request) {
	o, there := s.objects[key(r)]
	if !there {
		fail(w, http.StatusNotFound, "NoSuchKey")
		return
	}
	h := w.Header()
	h.Set("ETag", o.etag)
	h.Set("X-Amz-Meta-Nonce", o.nonce)
	h.Set("Last-Modified", o.made.UTC().Format(http.TimeFormat))
	h.Set("Content-Length", strconv.Itoa(len(o.body)))
	_, _ = w.Write(bytes.Clone(o.body))
}

func (s *Server) remove(w http.ResponseWriter, r *http.Request) {
	var in struct {
		Object []struct{ Key string }
	}
	if err := xml.NewDecoder(r.Body).Decode(&in); err != nil {
		fail(w, http.StatusBadRequest, "MalformedXML")
		return
	}
	for _, o := range in.Object {
		delete(s.objects, o.Key)
	}
	fmt.Fprint(w, "<DeleteResult></DeleteResult>")
}

// list is ListObjectsV2. A continuation token is the last key of the page before.
func (s *Server) list(w http.ResponseWriter, r *http.Request) {
	type contents struct{ Key string }
	type prefix struct{ Prefix string }
	var out struct {
		XMLName               xml.Name `xml:"ListBucketResult"`
		IsTruncated           bool
		NextContinuationToken string `xml:",omitempty"`
		Contents              []contents
		CommonPrefixes        []prefix
	}
	q := r.URL.Query()
	after, page := max(q.Get("start-after"), q.Get("continuation-token")), 1000
	if s.Page > 0 {
		page = s.Page
	}
	for _, k := range slices.Sorted(maps.Keys(s.objects)) {
		rest, ok := strings.CutPrefix(k, q.Get("prefix"))
		dir, _, deep := strings.Cut(rest, "/")
		deep = deep && q.Get("delimiter") == "/"
		at := k
		if deep {
			at = q.Get("prefix") + dir + "/"
		}
		if !ok || at <= after || strings.HasPrefix(after, at) && deep {
			continue
		}
		if len(out.Contents)+len(out.CommonPrefixes) == page {
			out.IsTruncated = true
			break
		}
		if deep {
			out.CommonPrefixes = append(out.CommonPrefixes, prefix{at})
		} else {
			out.Contents = append(out.Contents, contents{k})
		}
		after, out.NextContinuationToken = at, at
	}
	if !out.IsTruncated {
		out.NextContinuationToken = ""
	}
	_ = xml.NewEncoder(w).Encode(out)
}
