package awsfake

import (
	"encoding/base64"
	"fmt"
	"math"
	"reflect"
	"time"

	"github.com/aws/smithy-go/encoding/cbor"
)

// toTree makes maps and lists of one of the SDK's structs, for JSON: times are seconds.
func toTree(v reflect.Value) any {
	switch {
	case v.Kind() == reflect.Pointer:
		return toTree(v.Elem())
	case v.Type() == timeType:
		return float64(v.Interface().(time.Time).UnixMilli()) / 1000
	case v.Kind() == reflect.Struct:
		m := map[string]any{}
		for i := range v.NumField() {
			f := v.Type().Field(i)
			if f.IsExported() && f.Name != "ResultMetadata" && !isNone(v.Field(i)) {
				m[f.Name] = toTree(v.Field(i))
			}
		}
		return m
	case v.Kind() == reflect.Slice && v.Type().Elem().Kind() == reflect.Uint8:
		return base64.StdEncoding.EncodeToString(v.Bytes())
	case v.Kind() == reflect.Slice:
		l := make([]any, v.Len())
		for i := range l {
			l[i] = toTree(v.Index(i))
		}
		return l
	case v.Kind() == reflect.Map:
		m := map[string]any{}
		for _, k := range v.MapKeys() {
			m[k.String()] = toTree(v.MapIndex(k))
		}
		return m
	}
	return v.Interface()
}

// fromTree fills v, one of the SDK's structs, from what JSON or CBOR held.
func fromTree(x any, v reflect.Value) error {
	if x == nil {
		return nil
	}
	switch {
	case v.Kind() == reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		return fromTree(x, v.Elem())
	case v.Type() == timeType:
		if t, ok := x.(time.Time); ok {
			v.Set(reflect.ValueOf(t))
			return nil
		}
		f, err := number(x)
		v.Set(reflect.ValueOf(time.UnixMilli(int64(f * 1000))))
		return err
	}
	switch x := x.(type) {
	case map[string]any:
		if v.Kind() == reflect.Map {
			v.Set(reflect.MakeMap(v.Type()))
			for k, e := range x {
				to := reflect.New(v.Type().Elem()).Elem()
				if err := fromTree(e, to); err != nil {
					return err
				}
				v.SetMapIndex(reflect.ValueOf(k).Convert(v.Type().Key()), to)
			}
			return nil
		}
		if v.Kind() != reflect.Struct {
			return refuse("SerializationException", "an object where a %s is to be", v.Kind())
		}
		for k, e := range x {
			if f := v.FieldByName(k); f.IsValid() {
				if err := fromTree(e, f); err != nil {
					return err
				}
			}
		}
		return nil
	case []any:
		v.Set(reflect.MakeSlice(v.Type(), len(x), len(x)))
		for i, e := range x {
			if err := fromTree(e, v.Index(i)); err != nil {
				return err
			}
		}
		return nil
	case string:
		if v.Kind() != reflect.String {
			return refuse("SerializationException", "a string where a %s is to be", v.Kind())
		}
		v.SetString(x)
		return nil
	case bool:
		v.SetBool(x)
		return nil
	}
	f, err := number(x)
	if err != nil {
		return err
	}
	if v.CanInt() {
		v.SetInt(int64(f))
	} else {
		v.SetFloat(f)
	}
	return nil
}

func number(x any) (float64, error) {
	switch x := x.(type) {
	case float64:
		return x, nil
	case int64:
		return float64(x), nil
	case uint64:
		return float64(x), nil
	}
	return 0, refuse("SerializationException", "%v is not a number", x)
}

// toCBOR is the same for CBOR, where times have a tag.
func toCBOR(v reflect.Value) cbor.Value {
	switch {
	case v.Kind() == reflect.Pointer:
		return toCBOR(v.Elem())
	case v.Type() == timeType:
		return &cbor.Tag{ID: 1, Value: cbor.Float64(float64(v.Interface().(time.Time).UnixMilli()) / 1000)}
	case v.Kind() == reflect.Struct:
		m := cbor.Map{}
		for i := range v.NumField() {
			f := v.Type().Field(i)
			if f.IsExported() && f.Name != "ResultMetadata" && !isNone(v.Field(i)) {
				m[f.Name] = toCBOR(v.Field(i))
			}
		}
		return m
	case v.Kind() == reflect.Slice:
		l := make(cbor.List, v.Len())
		for i := range l {
			l[i] = toCBOR(v.Index(i))
		}
		return l
	case v.CanInt():
		if i := v.Int(); i < 0 {
			return cbor.NegInt(-i)
		}
		return cbor.Uint(v.Int())
	case v.CanFloat():
		return cbor.Float64(v.Float())
	case v.Kind() == reflect.Bool:
		return cbor.Bool(v.Bool())
	}
	return cbor.String(fmt.Sprint(v.Interface()))
}

func fromCBOR(x cbor.Value) any {
	switch x := x.(type) {
	case cbor.Map:
		m := map[string]any{}
		for k, e := range x {
			m[k] = fromCBOR(e)
		}
		return m
	case cbor.List:
		l := make([]any, len(x))
		for i := range x {
			l[i] = fromCBOR(x[i])
		}
		return l
	case *cbor.Tag:
		f, err := number(fromCBOR(x.Value))
		if err != nil {
			return nil
		}
		sec, frac := math.Modf(f)
		return time.Unix(int64(sec), int64(frac*1e9)).UTC()
	case cbor.String:
		return string(x)
	case cbor.Bool:
		return bool(x)
	case cbor.Uint:
		return uint64(x)
	case cbor.NegInt:
		return -float64(x)
	case cbor.Float64:
		return float64(x)
	case cbor.Float32:
		return float64(x)
	}
	return nil
}
