package event

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
)

// fill sets every text of a value to one with the secret in it.
func fill(v reflect.Value) {
	switch v.Kind() {
	case reflect.String:
		v.SetString("x hunter2 x")
	case reflect.Slice:
		v.Set(reflect.ValueOf([]string{"x hunter2 x"}))
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Type().Field(i).IsExported() && v.Field(i).Type().Name() != "Time" {
				fill(v.Field(i))
			}
		}
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem())
	}
}

func TestNoFieldOfAReportTellsASecret(t *testing.T) {
	var r Report
	fill(reflect.ValueOf(&r).Elem())
	r.Build.Outcome, r.Step.Outcome = Failed, Failed          // one of ours
	r.Build.Digest, r.Build.FromDigest = "sha256:", "sha256:" // hashes
	want := r
	var got recorder
	Tell(With(t.Context(), got.sink, redactor("hunter2")), r)
	if len(got.events) != 1 || got.events[0].Kind != Reported {
		t.Fatalf("%+v", got.events)
	}
	line, err := json.Marshal(got.events[0])
	if err != nil || strings.Contains(string(line), "hunter2") || strings.Count(string(line), mark) < 15 {
		t.Errorf("%s, %v", line, err)
	}
	if !strings.Contains(want.Build.Why[0], "hunter2") || r.Step.Step != "x hunter2 x" {
		t.Error("the sender's own report was changed")
	}
}
