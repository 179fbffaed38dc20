package awscalls

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	"github.com/aws/smithy-go"
	"github.com/aws/smithy-go/middleware"
)

// In returns a configuration whose clients write what they change to the journal;
// with no journal the same one.
func (j *Journal) In(cfg aws.Config) aws.Config {
	if j == nil {
		return cfg
	}
	cfg.APIOptions = append(slices.Clone(cfg.APIOptions), written(func(context.Context) *Journal { return j }, nil))
	return cfg
}

type key struct{}

// Writing returns a context whose changing calls are written to a journal, by clients
// of ByContext.
func Writing(ctx context.Context, j *Journal) context.Context {
	return context.WithValue(ctx, key{}, j)
}

// ByContext returns a configuration whose clients write to the journal of each call's
// context. A call without one is a mistake of ours, and not made. answer tells
// refusals that come as errors of the server, and are answers all the same.
func ByContext(cfg aws.Config, answer func(error) bool) aws.Config {
	cfg.APIOptions = append(slices.Clone(cfg.APIOptions), written(func(ctx context.Context) *Journal {
		j, _ := ctx.Value(key{}).(*Journal)
		return j
	}, answer))
	return cfg
}

// written makes every call of a client that changes something wait until it is
// written down.
func written(of func(context.Context) *Journal, answer func(error) bool) func(*middleware.Stack) error {
	return func(stack *middleware.Stack) error {
		return stack.Initialize.Add(middleware.InitializeMiddlewareFunc("rebakeJournal",
			func(ctx context.Context, in middleware.InitializeInput, next middleware.InitializeHandler) (none middleware.InitializeOutput, _ middleware.Metadata, _ error) {
				op := awsmiddleware.GetOperationName(ctx)
				if Reads(op) {
					return next.HandleInitialize(ctx, in)
				}
				call := strings.ReplaceAll(awsmiddleware.GetServiceID(ctx), " ", "") + "." + op
				j := of(ctx)
				if j == nil {
					return none, middleware.Metadata{}, fmt.Errorf("%s has no journal", call)
				}
				e := Entry{Call: call, Region: awsmiddleware.GetRegion(ctx)}
				e.With, e.IDs = told(in.Parameters)
				n, err := j.intend(e)
				if err != nil {
					return none, middleware.Metadata{}, err
				}
				out, md, err := next.HandleInitialize(ctx, in)
				if n == 0 {
					return out, md, err
				}
				// An outcome that cannot be written down is as one that nobody knows.
				if jerr := j.end(outcome(n, out.Result, err, answer)); jerr != nil && err == nil {
					err = fmt.Errorf("%s was made, and cannot be written down: %w", call, jerr)
				}
				return out, md, err
			}), middleware.After)
	}
}

// outcome is what became of an intent.
func outcome(n int, result any, err error, answer func(error) bool) Entry {
	end := Entry{Of: n}
	var api smithy.APIError
	var http interface{ HTTPStatusCode() int }
	switch {
	case errors.As(err, &http) && http.HTTPStatusCode() >= 500 && (answer == nil || !answer(err)):
		end.Error = fmt.Sprintf("status %d", http.HTTPStatusCode())
	case errors.As(err, &api):
		end.Code = api.ErrorCode()
	case err != nil:
		end.Error = "no answer"
	default:
		_, end.Made = told(result)
		end.Code = refusal(result)
	}
	return end
}

// Reads tells calls that change nothing.
func Reads(op string) bool {
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
	toldNames = []string{"ClientToken", "Name", "GroupName", "SourceImageId", "SourceRegion", "AutoScalingGroupName", "LaunchTemplateName", "LifecycleHookName", "PolicyName",
		"MinSize", "MaxSize", "DesiredCapacity", "RequestedCapacity"}
	toldIDs = []string{"InstanceId", "ImageId", "SnapshotId", "VolumeId", "GroupId", "Resources", "InstanceIds", "VpcId", "SubnetId", "LaunchTemplateId", "InstanceRefreshId",
		"ListenerArn", "RuleArn", "TargetGroupArn", "TargetGroupARNs", "ResourceArns"}
	// what is in parts of them
	toldParts = []struct {
		part string
		ids  []string
	}{{"Instances", []string{"InstanceId", "InstanceIds"}}, {"Targets", []string{"Id"}}, {"Tags", []string{"ResourceId"}}, {"LaunchTemplate", []string{"LaunchTemplateId"}},
		{"TargetGroups", []string{"TargetGroupArn"}}, {"Rules", []string{"RuleArn"}}}
)

func told(params any) (with map[string]string, ids []string) {
	v := reflect.Indirect(reflect.ValueOf(params))
	if v.Kind() != reflect.Struct {
		return nil, nil
	}
	for _, n := range toldNames {
		for _, s := range words(v, n) {
			if with == nil {
				with = map[string]string{}
			}
			with[n] = s
		}
	}
	for _, n := range toldIDs {
		ids = append(ids, words(v, n)...)
	}
	for _, p := range toldParts {
		for _, one := range parts(v, p.part) {
			for _, n := range p.ids {
				for _, id := range words(one, n) {
					if !slices.Contains(ids, id) {
						ids = append(ids, id)
					}
				}
			}
		}
	}
	return with, ids
}

// words are what a field says: a text, a number or a list of texts; none if it is
// not there or empty.
func words(v reflect.Value, field string) []string {
	f := reflect.Indirect(v.FieldByName(field))
	switch {
	case !f.IsValid():
	case f.Kind() == reflect.String && f.String() != "":
		return []string{f.String()}
	case f.Kind() == reflect.Int32:
		return []string{strconv.FormatInt(f.Int(), 10)}
	case f.Kind() == reflect.Slice && f.Type().Elem().Kind() == reflect.String && f.CanInterface():
		list, _ := f.Interface().([]string)
		return list
	}
	return nil
}

// parts are the structures in a field: one, or a list of them.
func parts(v reflect.Value, field string) (out []reflect.Value) {
	f := reflect.Indirect(v.FieldByName(field))
	if !f.IsValid() {
		return nil
	}
	if f.Kind() != reflect.Slice {
		return structs(f)
	}
	for i := range f.Len() {
		out = append(out, structs(reflect.Indirect(f.Index(i)))...)
	}
	return out
}

func structs(v reflect.Value) []reflect.Value {
	if v.Kind() != reflect.Struct {
		return nil
	}
	return []reflect.Value{v}
}

// refusal is the code of an answer that is no error, and says all the same what
// could not be done; else "".
func refusal(result any) string {
	v := reflect.Indirect(reflect.ValueOf(result))
	if v.Kind() != reflect.Struct {
		return ""
	}
	for _, p := range []string{"Errors", "FailedScheduledUpdateGroupActions"} {
		for _, one := range parts(v, p) {
			if code := words(one, "ErrorCode"); len(code) > 0 {
				return code[0]
			}
		}
	}
	return ""
}
