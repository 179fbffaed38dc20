package amazon

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	"github.com/aws/smithy-go"
	"github.com/aws/smithy-go/middleware"
	"github.com/rebake/rebake/internal/atomicfile"
)

// journal is calls.jsonl of a machine's directory: each call that changes
// something is a line before it is made, and another once its outcome is known.
// It is how Destroy knows, with no other memory, in which regions something may
// be and what may not be seen yet. Two processes may write to it (a build and a
// gc that was told that it is dead), so it is no chain: a line is one write.
type journal struct {
	mu   sync.Mutex
	path string
	n    int
}

const journalName = "calls.jsonl"

// entry is a line: an intent (Call), or the outcome of one (Of).
type entry struct {
	Time   time.Time         `json:"time"`
	N      int               `json:"n,omitempty"`
	Call   string            `json:"call,omitempty"` // EC2.RunInstances
	Region string            `json:"region,omitempty"`
	With   map[string]string `json:"with,omitempty"` // token, name and ids that it was given
	IDs    []string          `json:"ids,omitempty"`  // that it is about
	Of     int               `json:"of,omitempty"`
	Made   []string          `json:"made,omitempty"`
	Code   string            `json:"code,omitempty"`  // that AWS refused with
	Error  string            `json:"error,omitempty"` // nobody knows whether it was done
}

// openJournal opens the journal of a machine's directory, which it makes.
func openJournal(dir string) (*journal, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	j := &journal{path: filepath.Join(dir, journalName)}
	if _, err := os.Lstat(j.path); errors.Is(err, fs.ErrNotExist) {
		f, err := os.OpenFile(j.path, os.O_CREATE|os.O_WRONLY, 0o600)
		if err != nil {
			return nil, err
		}
		if err := errors.Join(f.Close(), atomicfile.Sync(dir), atomicfile.Sync(filepath.Dir(dir))); err != nil {
			return nil, err
		}
	}
	all, err := readJournal(dir)
	for _, e := range all {
		j.n = max(j.n, e.N)
	}
	return j, err
}

// readJournal reads all whole lines. One that is torn is of a call that was not made.
func readJournal(dir string) ([]entry, error) {
	raw, err := os.ReadFile(filepath.Join(dir, journalName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var out []entry
	in := bufio.NewReader(bytes.NewReader(raw))
	for {
		line, err := in.ReadBytes('\n')
		var e entry
		if json.Unmarshal(line, &e) == nil && (e.Call != "" || e.Of != 0) {
			out = append(out, e)
		}
		if errors.Is(err, io.EOF) {
			return out, nil
		}
	}
}

// append writes a line and returns once it is on the disk.
func (j *journal) append(e entry) error {
	line, err := json.Marshal(e)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(j.path, os.O_WRONLY|os.O_APPEND, 0o600) // not made again: Destroy may have ended it
	if err != nil {
		return err
	}
	st, err := f.Stat()
	if err == nil && st.Size() > 0 { // what a kill tore has no end
		line = append([]byte("\n"), line...)
	}
	if err == nil {
		_, err = f.Write(append(line, '\n'))
	}
	return errors.Join(err, f.Sync(), f.Close())
}

func (j *journal) intend(e entry) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.n++
	e.N, e.Time = j.n, time.Now().UTC()
	if err := j.append(e); err != nil {
		return 0, fmt.Errorf("%s is not made, because it cannot be written down: %w", e.Call, err)
	}
	return e.N, nil
}

// regionsOf are those in which something was or may have been made.
func regionsOf(all []entry) (out []string) {
	for _, e := range all {
		if e.Region != "" && !slices.Contains(out, e.Region) {
			out = append(out, e.Region)
		}
	}
	return out
}

type journalKey struct{}

// writing returns a context whose changing calls are written to a journal.
func writing(ctx context.Context, j *journal) context.Context {
	return context.WithValue(ctx, journalKey{}, j)
}

// journalled makes every call of a client that changes something wait until it is
// written down. A call without a journal in its context is a mistake of ours.
func journalled(stack *middleware.Stack) error {
	return stack.Initialize.Add(middleware.InitializeMiddlewareFunc("rebakeJournal",
		func(ctx context.Context, in middleware.InitializeInput, next middleware.InitializeHandler) (middleware.InitializeOutput, middleware.Metadata, error) {
			op := awsmiddleware.GetOperationName(ctx)
			if reads(op) {
				return next.HandleInitialize(ctx, in)
			}
			call := awsmiddleware.GetServiceID(ctx) + "." + op
			j, ok := ctx.Value(journalKey{}).(*journal)
			if !ok {
				return middleware.InitializeOutput{}, middleware.Metadata{}, fmt.Errorf("%s has no journal", call)
			}
			e := entry{Call: call, Region: awsmiddleware.GetRegion(ctx)}
			e.With, e.IDs = told(in.Parameters)
			n, err := j.intend(e)
			if err != nil {
				return middleware.InitializeOutput{}, middleware.Metadata{}, err
			}
			out, md, err := next.HandleInitialize(ctx, in)
			end := entry{Time: time.Now().UTC(), Of: n}
			var api smithy.APIError
			var http interface{ HTTPStatusCode() int }
			switch {
			case errors.As(err, &http) && http.HTTPStatusCode() >= 500 && !noCapacity(err):
				end.Error = fmt.Sprintf("status %d", http.HTTPStatusCode())
			case errors.As(err, &api):
				end.Code = api.ErrorCode()
			case err != nil:
				end.Error = "no answer"
			default:
				_, end.Made = told(out.Result)
			}
			// An outcome that cannot be written down is as one that nobody knows.
			if jerr := j.append(end); jerr != nil && err == nil {
				err = fmt.Errorf("%s was made, and cannot be written down: %w", call, jerr)
			}
			return out, md, err
		}), middleware.After)
}

// reads tells calls that change nothing.
func reads(op string) bool {
	for _, p := range []string{"Describe", "Get", "List"} {
		if strings.HasPrefix(op, p) {
			return true
		}
	}
	return false
}

// What of a call's parameters and result is written down: never user data, never
// a tag's value.
var (
	toldNames = []string{"ClientToken", "Name", "GroupName", "SourceImageId", "SourceRegion"}
	toldIDs   = []string{"InstanceId", "ImageId", "SnapshotId", "VolumeId", "GroupId", "Resources", "InstanceIds", "VpcId", "SubnetId"}
)

func told(params any) (with map[string]string, ids []string) {
	v := reflect.Indirect(reflect.ValueOf(params))
	if v.Kind() != reflect.Struct {
		return nil, nil
	}
	text := func(v reflect.Value, field string) string {
		f := reflect.Indirect(v.FieldByName(field))
		if f.IsValid() && f.Kind() == reflect.String {
			return f.String()
		}
		return ""
	}
	for _, n := range toldNames {
		if s := text(v, n); s != "" {
			if with == nil {
				with = map[string]string{}
			}
			with[n] = s
		}
	}
	for _, n := range toldIDs {
		if s := text(v, n); s != "" {
			ids = append(ids, s)
		}
		if list, ok := fieldOf(v, n).([]string); ok {
			ids = append(ids, list...)
		}
	}
	if list := v.FieldByName("Instances"); list.IsValid() && list.Kind() == reflect.Slice {
		for i := range list.Len() {
			ids = append(ids, text(reflect.Indirect(list.Index(i)), "InstanceId"))
		}
	}
	return with, ids
}

func fieldOf(v reflect.Value, name string) any {
	f := v.FieldByName(name)
	if !f.IsValid() || !f.CanInterface() {
		return nil
	}
	return f.Interface()
}
